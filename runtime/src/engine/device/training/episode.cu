// Episodes of worlds that answer actions, one thread for each row: the world, sampling from the policy, what is kept of
// a step. A task's source stands before this and defines
//
//   world_begin(row)                  a row at its beginning
//   world_observe(row, step, input)   what the network sees; `input` is zero
//   world_act(row, step, action)      the reward
//   world_reward(row)                 the reward of the step before

__device__ static inline void observe(const Row &row, int step) {
  const Lesson *l = row.lesson;
  float *frame = frame_of(l, step, row.row);
  world_observe(row, step, frame + l->input);
  if (l->reward >= 0) frame[l->reward] = world_reward(row);
}

// The beginning of all rows, and what is seen at step 0.
extern "C" __global__ void begin_rows(const Lesson *l, int) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= l->rows) return;
  const Row row(l, number);
  clear_results(l, number);
  world_begin(row);
  observe(row, 0);
}

// The softmax of logits in double precision: ln p is z - top - log_sum.
struct Softmax {
  const float *logits;
  int count;
  double top, log_sum;

  __device__ inline Softmax(const float *z, int n) : logits(z), count(n) {
    float most = z[0];
    for (int k = 1; k < n; ++k) most = z[k] > most ? z[k] : most;
    top = most;
    double sum = 0.0;
    for (int k = 0; k < n; ++k) sum += exponential((double)z[k] - top);
    log_sum = logarithm(sum);
  }
  __device__ inline double log_of(int k) const { return (double)logits[k] - top - log_sum; }
  __device__ inline double of(int k) const { return exponential(log_of(k)); }
};

// An index drawn with the probabilities of a softmax.
__device__ static inline int draw(const Softmax &p, Stream &stream) {
  double total = 0.0;
  for (int k = 0; k < p.count; ++k) total += p.of(k);
  double left = stream.uniform() * total;
  int last = 0;
  for (int k = 0; k < p.count; ++k) {
    const double share = p.of(k);
    left -= share;
    if (left < 0.0) return k;
    if (share > 0.0) last = k;
  }
  return last;
}

// After the network's step: the action, its reward, and what is seen at the next step.
extern "C" __global__ void answer(const Lesson *l, int step) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= l->rows) return;
  const Row row(l, number);
  const float *frame = frame_of(l, step, number), *logits = frame + l->output;
  double *results = results_of(l, number);
  bool finite = is_finite(frame[l->value]);
  for (int k = 0; k < l->outputs; ++k) finite = finite && is_finite(logits[k]);
  if (!finite && results[BROKEN] < 0.0) results[BROKEN] = step;
  int action = 0;
  if (finite) {
    Stream stream(l->update, ACTION, number, step);
    action = draw(Softmax(logits, l->outputs), stream);
  }
  const float reward = world_act(row, step, action);
  const long long at = (long long)step * l->rows + number;
  l->actions[at] = action;
  l->rewards[at] = reward;
  results[SCORES] += (double)reward;
  if (step + 1 < l->steps) observe(row, step + 1);
}

// ---------------------------------------------------------------------------------------------------------------
// Advantage actor-critic, as `learner/actor_critic.rs` defines it.

// The returns of a row.
extern "C" __global__ void returns(const Lesson *l, int) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= l->rows) return;
  double next = 0.0;
  for (int step = l->steps - 1; step >= 0; --step) {
    const long long at = (long long)step * l->rows + row;
    next = (double)l->rewards[at] + l->gamma * next;
    l->returns[at] = next;
  }
}

__device__ static inline double value_of(const Lesson *l, int step, int row) {
  return (double)frame_of(l, step, row)[l->value];
}

// What the value of a row at a step is held against: its advantage, or, where all rows use the values of row 0, their
// sum for row 0 and nothing for others.
__device__ static inline double held(const Lesson *l, int step, int row, double advantage) {
  if (!l->shared_baseline) return advantage;
  if (row != 0) return 0.0;
  double sum = 0.0;
  for (int r = 0; r < l->rows; ++r) sum += l->returns[(long long)step * l->rows + r] - value_of(l, step, 0);
  return sum;
}

// The cotangents of policy and value of a step of a row, and its terms of the loss: a thread for each.
extern "C" __global__ void cotangents(const Lesson *l, int) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= (long long)l->steps * l->rows) return;
  const int step = (int)(at / l->rows), row = (int)(at % l->rows), action = l->actions[at];
  float *frame = frame_of(l, step, row);
  const Softmax p(frame + l->output, l->outputs);
  const double advantage = l->returns[at] - value_of(l, step, l->shared_baseline ? 0 : row);
  double squares = 0.0, negative_entropy = 0.0;
  for (int k = 0; k < p.count; ++k) {
    const double share = p.of(k);
    squares += share * share;
    if (share > 0.0) negative_entropy += share * p.log_of(k);
  }
  double *terms = l->terms + at * TERMS;
  terms[POLICY] = -p.log_of(action) * advantage;
  terms[SQUARES] = squares;
  terms[VALUE] = advantage * advantage;
  terms[ENTROPY] = -negative_entropy;
  for (int k = 0; k < p.count; ++k) {
    const double share = p.of(k);
    const double slope =
        (share - (k == action ? 1.0 : 0.0)) * advantage + l->entropy_weight * 2.0 * share * (share - squares);
    frame[l->output_bar + k] = (float)(l->share * slope);
  }
  frame[l->value_bar] = (float)(-2.0 * l->value_weight * held(l, step, row, advantage) * l->share);
}

// The terms of a row, and its penalties, over its steps.
extern "C" __global__ void totals(const Lesson *l, int) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= l->rows) return;
  double sums[TERMS] = {0.0, 0.0, 0.0, 0.0};
  for (int step = 0; step < l->steps; ++step) {
    const double *terms = l->terms + ((long long)step * l->rows + row) * TERMS;
    for (int k = 0; k < TERMS; ++k) sums[k] += terms[k];
  }
  double *results = results_of(l, row);
  for (int k = 0; k < TERMS; ++k) results[k] = sums[k];
  results[PENALTY] = penalty_of(l, row);
}
