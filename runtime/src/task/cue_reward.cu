// Cues and rewards of `cue_reward.rs` on a device: the same episodes, number by number.

// What it is told, and what it remembers of a row: the trial, then an order of cues, then the trial's slots.
enum { STEPS, COUNT, BITS, FIXED, PRINTED };
enum { PAY, PRESS_COST };
enum { FLIP };
enum { TARGET, START, LENGTH, SHOWN, LAST_ACTION, ORDER };
enum { LAST_REWARD, CUES };

// Whether a cue differs from all before it.
__device__ static inline bool is_new(const float *cues, int number, int bits) {
  for (int other = 0; other < number; ++other) {
    bool same = true;
    for (int k = 0; k < bits; ++k) same = same && cues[other * bits + k] == cues[number * bits + k];
    if (same) return false;
  }
  return true;
}

__device__ static inline void draw_cues(const Row &row, Stream &stream) {
  const int *told = row.lesson->ints;
  const int bits = told[BITS];
  float *cues = row.floats + CUES;
  for (int number = 0; number < told[COUNT];) {
    for (int k = 0; k < bits; ++k)
      cues[number * bits + k] = told[FIXED] ? (k == number ? 1.0f : 0.0f) : stream.below(2) ? 1.0f : -1.0f;
    if (is_new(cues, number, bits)) ++number;
  }
}

// A trial: a blank step, half of the cues among blanks, the go step, a blank step; a blank is -1.
__device__ static inline void draw_trial(const Row &row, int start) {
  const int count = row.lesson->ints[COUNT], half = count / 2;
  int *order = row.ints + ORDER, *slots = order + count, *middle = slots + 1;
  Stream stream = row.stream((unsigned)start + 1);
  const int blanks = stream.below(count);
  for (int k = 0; k < count; ++k) order[k] = k;
  shuffle(stream, order, count);
  bool shown = false;
  for (int k = 0; k < half; ++k) {
    middle[k] = order[k];
    shown = shown || order[k] == row.ints[TARGET];
  }
  for (int k = 0; k < blanks; ++k) middle[half + k] = -1;
  shuffle(stream, middle, half + blanks);
  slots[0] = slots[half + blanks + 1] = slots[half + blanks + 2] = -1;
  row.ints[START] = start;
  row.ints[LENGTH] = half + blanks + 3;
  row.ints[SHOWN] = shown;
}

__device__ static inline bool is_go(const Row &row, int step) { return step - row.ints[START] + 2 == row.ints[LENGTH]; }

__device__ static inline void world_begin(const Row &row) {
  Stream stream = row.stream(0);
  draw_cues(row, stream);
  row.ints[TARGET] = stream.below(row.lesson->ints[COUNT]);
  row.ints[LAST_ACTION] = -1;
  row.floats[LAST_REWARD] = 0.0f;
  draw_trial(row, 0);
}

__device__ static inline float world_reward(const Row &row) { return row.floats[LAST_REWARD]; }

__device__ static inline void world_observe(const Row &row, int step, float *input) {
  const int *told = row.lesson->ints;
  const int bits = told[BITS], action = row.ints[LAST_ACTION];
  if (step == row.ints[START] + row.ints[LENGTH]) draw_trial(row, step);
  const int cue = row.ints[ORDER + told[COUNT] + step - row.ints[START]];
  if (cue >= 0)
    for (int k = 0; k < bits; ++k) input[k] = row.floats[CUES + cue * bits + k];
  const float time = (float)step / (float)told[STEPS];
  float *rest = input + bits;
  if (told[PRINTED]) {
    rest[0] = time;
    if (action >= 0) rest[1 + action] = 1.0f;
    rest[3] = world_reward(row);
    return;
  }
  rest[0] = is_go(row, step) ? 1.0f : 0.0f;
  rest[1] = 1.0f;
  rest[2] = time;
  rest[3] = world_reward(row);
  if (action >= 0) rest[5 + action] = 1.0f;
}

__device__ static inline float world_act(const Row &row, int step, int action) {
  const Lesson *l = row.lesson;
  row.ints[LAST_ACTION] = action;
  float reward = action == 1 ? -l->floats[PRESS_COST] : 0.0f;
  if (is_go(row, step)) {
    const bool right = (action == 1) == (row.ints[SHOWN] != 0);
    const double flip = l->doubles[FLIP];
    const bool flipped = flip > 0.0 && row.stream(((unsigned)step + 1) | 1u << 31).chance(flip);
    reward = right != flipped ? l->floats[PAY] : -l->floats[PAY];
  }
  row.floats[LAST_REWARD] = reward;
  return reward;
}
