// Episodes whose inputs are known before the network has run: what is seen at all steps, then the losses of outputs that
// have targets. A task's source stands before this and defines
//
//   world_begin(row)                    draws the episode of a row
//   world_shown(row, step, k)           the k-th number that the network sees
//   world_label(row, step, k)           the k-th number of the label that it sees; not asked for where there is none
//   world_targets(row, step)            how many outputs have a target, the first ones; 0 for none
//   world_target(row, step, k)          what the k-th of them should be
//   world_scores(row, output, scores)   the scores, from the last output
//
// All but the first and the last are asked for every number by a thread of its own.

extern "C" __global__ void begin_rows(const Lesson *l, int) {
  const long long row = thread();
  if (row >= l->rows) return;
  clear_results(l, (int)row);
  world_begin(Row(l, (int)row));
}

// A number of a row at a step.
struct Element {
  long long at;  // of the row and the step among all
  int step, row, k;

  __device__ inline Element(const Lesson *l, int width)
      : at(thread() / width), step((int)(at / l->rows)), row((int)(at % l->rows)), k((int)(thread() % width)) {}
};

// What is seen at all steps, into their frames: inputs, then labels.
extern "C" __global__ void show(const Lesson *l, int) {
  const Element e(l, l->inputs + l->labels);
  if (e.step >= l->steps) return;
  const Row row(l, e.row);
  float *frame = frame_of(l, e.step, e.row);
  if (e.k < l->inputs) frame[l->input + e.k] = world_shown(row, e.step, e.k);
  else frame[l->label + e.k - l->inputs] = world_label(row, e.step, e.k - l->inputs);
}

// ---------------------------------------------------------------------------------------------------------------
// Cross-entropy, as `learner/cross_entropy.rs` defines it.

__device__ static inline double infinity() { return with_bits(0x7ff0000000000000ull); }

// ln of the sum of exp z over all classes but one, without overflow.
__device__ static inline double log_sum(const float *z, int count, int but) {
  double top = -infinity(), sum = 0.0;
  for (int k = 0; k < count; ++k) top = k != but && (double)z[k] > top ? (double)z[k] : top;
  if (!(top > -infinity() && top < infinity())) return top;
  for (int k = 0; k < count; ++k) sum += k != but ? exponential((double)z[k] - top) : 0.0;
  return top + logarithm(sum);
}

__device__ static inline double *logs_of(const Lesson *l, long long at) { return l->logs + at * 2 * l->outputs; }

// ln p and ln (1 - p) of every class.
extern "C" __global__ void logs(const Lesson *l, int) {
  const Element e(l, l->outputs);
  if (e.step >= l->steps || world_targets(Row(l, e.row), e.step) == 0) return;
  const float *z = frame_of(l, e.step, e.row) + l->output;
  const double all = log_sum(z, l->outputs, -1);
  double *own = logs_of(l, e.at), *others = own + l->outputs;
  own[e.k] = (double)z[e.k] - all;
  others[e.k] = log_sum(z, l->outputs, e.k) - all;
}

// The class that a target names.
__device__ static inline int class_of(const Row &row, int step, int count) {
  for (int k = 0; k < count; ++k)
    if (world_target(row, step, k) == 1.0f) return k;
  return 0;
}

__device__ static inline double class_loss(const Lesson *l, long long at, int target) {
  const double *own = logs_of(l, at), *others = own + l->outputs;
  if (l->loss == CATEGORICAL) return -own[target];
  double sum = 0.0;
  for (int k = 0; k < l->outputs; ++k) sum += k != target ? others[k] : 0.0;
  return -(own[target] + sum) / (double)l->outputs;
}

__device__ static inline double class_slope(const Lesson *l, long long at, int target, int j) {
  const double *own = logs_of(l, at), *others = own + l->outputs;
  if (l->loss == CATEGORICAL) return j == target ? -exponential(others[j]) : exponential(own[j]);
  double pulls = 0.0;
  for (int k = 0; k < l->outputs; ++k)
    pulls += k != target && k != j ? exponential(own[k]) * exponential(own[j] - others[k]) : 0.0;
  const double slope = j == target ? -exponential(others[j]) - pulls : 2.0 * exponential(own[j]) - pulls;
  return slope / (double)l->outputs;
}

// ---------------------------------------------------------------------------------------------------------------
// Losses and cotangents, of this kind or squared errors (`learner/squared_error.rs`).

// The loss of a row at a step, and whether its outputs are finite: a thread for each.
extern "C" __global__ void losses(const Lesson *l, int) {
  const Element e(l, 1);
  if (e.step >= l->steps) return;
  const Row row(l, e.row);
  const float *y = frame_of(l, e.step, e.row) + l->output;
  bool finite = true;
  for (int k = 0; k < l->outputs; ++k) finite = finite && is_finite(y[k]);
  const int count = world_targets(row, e.step);
  double loss = 0.0;
  if (count > 0 && l->loss != SQUARED) loss = class_loss(l, e.at, class_of(row, e.step, count));
  for (int k = 0; k < count && l->loss == SQUARED; ++k) {
    const double error = (double)y[k] - (double)world_target(row, e.step, k);
    loss += error * error;
  }
  double *terms = l->terms + e.at * TERMS;
  terms[LOSS] = loss;
  terms[OUTPUTS_FINITE] = finite ? 1.0 : 0.0;
}

// The cotangents of outputs that have targets; all others are zero.
extern "C" __global__ void cotangents(const Lesson *l, int) {
  const Element e(l, l->outputs);
  if (e.step >= l->steps) return;
  const Row row(l, e.row);
  const int count = world_targets(row, e.step);
  if (count == 0 || (l->loss == SQUARED && e.k >= count)) return;
  float *frame = frame_of(l, e.step, e.row);
  const double share = 1.0 / (double)l->rows;
  const double slope = l->loss == SQUARED
                           ? 2.0 * ((double)frame[l->output + e.k] - (double)world_target(row, e.step, e.k))
                           : class_slope(l, e.at, class_of(row, e.step, count), e.k);
  frame[l->output_bar + e.k] = (float)(slope * share);
}

// The loss of a row, the first step whose outputs are not finite, its penalties and its scores.
extern "C" __global__ void totals(const Lesson *l, int) {
  const long long number = thread();
  if (number >= l->rows) return;
  const int row = (int)number;
  double *results = results_of(l, row);
  double loss = 0.0;
  for (int step = 0; step < l->steps; ++step) {
    const double *terms = l->terms + ((long long)step * l->rows + row) * TERMS;
    loss += terms[LOSS];
    if (terms[OUTPUTS_FINITE] == 0.0 && results[BROKEN] < 0.0) results[BROKEN] = step;
  }
  results[LOSS] = loss;
  results[PENALTY] = penalty_of(l, row);
  world_scores(Row(l, row), frame_of(l, l->steps - 1, row) + l->output, results + SCORES);
}
