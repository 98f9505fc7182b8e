// The patterns of `pattern_completion.rs` on a device: the same episodes, number by number.

// What it is told, and what it remembers of a row: the order of patterns, then whether a bit is missing in the test.
enum { BITS, PATTERNS, CYCLES, SHOWS, BLANKS, TEST_BITS_DROPPED, EXACTLY, BALANCED, BIAS };
enum { SCALE };
enum { DROPPED_PART };
enum { TESTED, ORDER };

__device__ static inline int shown_in_all(const int *told) { return told[CYCLES] * told[PATTERNS]; }

__device__ static inline int *dropped_of(const Row &row) { return row.ints + ORDER + shown_in_all(row.lesson->ints); }

__device__ static inline const float *pattern_of(const Row &row, int number) {
  return row.floats + (long long)number * row.lesson->ints[BITS];
}

__device__ static inline void draw_pattern(const int *told, Stream &stream, float *bits) {
  const int count = told[BITS];
  for (int k = 0; k < count; ++k)
    bits[k] = told[BALANCED] ? (k < count / 2 ? 1.0f : -1.0f) : stream.below(2) ? 1.0f : -1.0f;
  for (int k = count - 1; k >= 1 && told[BALANCED]; --k) {
    const int other = stream.below(k + 1);
    const float kept = bits[k];
    bits[k] = bits[other];
    bits[other] = kept;
  }
}

__device__ static inline void draw_dropped(const Row &row, Stream &stream, int *dropped) {
  const int *told = row.lesson->ints;
  for (int k = 0; k < told[BITS]; ++k)
    dropped[k] = told[EXACTLY] ? k < told[TEST_BITS_DROPPED] : stream.chance(row.lesson->doubles[DROPPED_PART]);
  if (told[EXACTLY]) shuffle(stream, dropped, told[BITS]);
}

__device__ static inline void world_begin(const Row &row) {
  const int *told = row.lesson->ints;
  const int patterns = told[PATTERNS];
  Stream stream = row.stream(0);
  for (int number = 0; number < patterns; ++number)
    draw_pattern(told, stream, row.floats + (long long)number * told[BITS]);
  for (int cycle = 0; cycle < told[CYCLES]; ++cycle) {
    int *order = row.ints + ORDER + cycle * patterns;
    for (int k = 0; k < patterns; ++k) order[k] = k;
    shuffle(stream, order, patterns);
  }
  row.ints[TESTED] = stream.below(patterns);
  draw_dropped(row, stream, dropped_of(row));
}

// A bit as it is seen at a step; zero for none.
__device__ static inline float bit_at(const Row &row, int step, int k) {
  const int *told = row.lesson->ints;
  const int each = told[SHOWS] + told[BLANKS], shown = step / each;
  if (shown >= shown_in_all(told)) return dropped_of(row)[k] ? 0.0f : pattern_of(row, row.ints[TESTED])[k];
  return step % each < told[SHOWS] ? pattern_of(row, row.ints[ORDER + shown])[k] : 0.0f;
}

__device__ static inline float world_shown(const Row &row, int step, int k) {
  const int *told = row.lesson->ints;
  const float x = k < told[BITS] ? bit_at(row, step, k) : k == told[BITS] && told[BIAS] ? 1.0f : 0.0f;
  return x * row.lesson->floats[SCALE];
}

__device__ static inline float world_label(const Row &, int, int) { return 0.0f; }

__device__ static inline int world_targets(const Row &row, int step) {
  return step + 1 == row.lesson->steps ? row.lesson->ints[BITS] : 0;
}

__device__ static inline float world_target(const Row &row, int, int k) { return pattern_of(row, row.ints[TESTED])[k]; }

__device__ static inline void world_scores(const Row &row, const float *output, double *scores) {
  const int bits = row.lesson->ints[BITS], *dropped = dropped_of(row);
  int all = 0, among = 0, missing = 0;
  for (int k = 0; k < bits; ++k) {
    const int wrong = output[k] * world_target(row, 0, k) <= 0.0f;
    all += wrong;
    among += wrong && dropped[k];
    missing += dropped[k];
  }
  const double error = (double)all / (double)bits;
  scores[0] = 1.0 - error;
  scores[1] = error;
  scores[2] = (double)among / (double)(missing < 1 ? 1 : missing);
}
