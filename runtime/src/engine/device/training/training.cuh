// What all kernels of training share: the structures that lie on the device, the two functions of which processor
// and device have one definition, and the random numbers of `rng.rs`.

#ifdef __CUDACC__
#pragma nv_diag_suppress 177  // no source uses all of what follows
#else
// The emulator includes no headers of the C library.
extern "C" {
double exp(double);
double fabs(double);
double log(double);
double log1p(double);
double sqrt(double);
double tanh(double);
}
#endif

// What changes from update to update (`Update`).
struct Update {
  unsigned long long seed;
  unsigned episode;
  int learns;   // whether parameters may move
  float rate;   // the rate of this step, with the correction of Adam's mean
  float root;   // the root of the correction of Adam's mean square
};

// An episode of all rows (`Lesson`). Regions of the tape are those of the network's kernels.
struct Lesson {
  const Update *update;
  float *frames;         // [frame][row][frame_length]
  const int *penalties;  // places of the penalty's terms in a frame
  const int *ints;       // what the world is told
  const float *floats;
  const double *doubles;
  int *row_ints;      // [row][int_count]: what the world remembers
  float *row_floats;  // [row][float_count]
  int *actions;       // [step][row]
  float *rewards;     // [step][row]
  double *returns;    // [step][row]
  double *terms;      // [step][row][TERMS]
  double *logs;       // [step][row][2][outputs]: ln p of every class, and ln (1 - p)
  double *results;    // [row][RESULTS]
  double gamma, value_weight, entropy_weight;
  double share;  // of a step of a row in the loss
  long long frame_length;
  int first_frame, rows, steps;
  int int_count, float_count;
  // Places in a frame, a negative one is none; and how many numbers lie there.
  int input, inputs;
  int label, labels;
  int reward;
  int output, outputs;  // logits of actions or of classes, or what is compared with a target
  int value;
  int output_bar, value_bar;
  int penalty_count;
  int shared_baseline;  // whether all rows use the values of row 0
  int loss;             // of outputs that have targets
};

// The losses of outputs that have targets (`Loss`).
enum { SQUARED, CATEGORICAL, BINARY };

// The terms of the loss of a step: those of an actor-critic, or else the loss itself, and whether the outputs are
// finite.
enum { POLICY, SQUARES, VALUE, ENTROPY, TERMS };
enum { LOSS, OUTPUTS_FINITE };
// What the host is told of a row: the terms, then these.
enum { SCORES = TERMS, PENALTY = SCORES + 3, BROKEN, RESULTS };

__device__ static inline bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// The frame of a row at a step.
__device__ static inline float *frame_of(const Lesson *l, int step, int row) {
  return l->frames + ((long long)(l->first_frame + step) * l->rows + row) * l->frame_length;
}

// ---------------------------------------------------------------------------------------------------------------
// exp and ln in double precision, operation by operation those of `learner/elementary.rs`.

union Bits {
  double number;
  unsigned long long bits;
};

__device__ static inline double with_bits(unsigned long long bits) {
  Bits b;
  b.bits = bits;
  return b.number;
}

__device__ static inline double power_of_two(long long k) { return with_bits((unsigned long long)(k + 1023) << 52); }

__device__ static inline double exponential(double x) {
  if (!(x >= -708.0)) return x < -708.0 ? 0.0 : x;
  if (x > 709.0) return with_bits(0x7ff0000000000000ull);
  const double y = x * 1.44269504088896338700e+00 + (x < 0.0 ? -0.5 : 0.5);
  const long long k = (long long)y;
  const double high = x - (double)k * 6.93147180369123816490e-01;
  const double low = (double)k * 1.90821492927058770002e-10;
  const double r = high - low;
  const double t = r * r;
  const double p = 6.61375632143793436117e-05 + t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08);
  const double c = r - t * (1.66666666666666019037e-01 + t * (-2.77777777770155933842e-03 + t * p));
  return (1.0 - ((low - r * c / (2.0 - c)) - high)) * power_of_two(k);
}

// Of a normal number above zero.
__device__ static inline double logarithm(double x) {
  Bits b;
  b.number = x;
  // The mantissa lies between the roots of 1/2 and 2.
  const unsigned long long shifted = b.bits + (0x3ff0000000000000ull - 0x3fe6a09e00000000ull);
  const double k = (double)((long long)(shifted >> 52) - 1023);
  b.bits = (shifted & 0x000fffffffffffffull) + 0x3fe6a09e00000000ull;
  const double f = b.number - 1.0;
  const double s = f / (2.0 + f), half = 0.5 * f * f;
  const double z = s * s, w = z * z;
  const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z * (6.666666666666735130e-01 +
                          w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double r = even + odd;
  return k * 6.93147180369123816490e-01 - ((half - (s * (half + r) + k * 1.90821492927058770002e-10)) - f);
}

// ---------------------------------------------------------------------------------------------------------------
// Philox4x32-10 and what is drawn from it, as in `rng.rs`.

enum Purpose { WORLD = 4, ACTION = 5 };

struct Stream {
  unsigned key0, key1;
  unsigned counter0, counter1, counter2, counter3;
  unsigned block0, block1, block2, block3;
  int used;

  // Of a training episode of a row.
  __device__ inline Stream(const Update *update, Purpose purpose, int row, unsigned step)
      : key0((unsigned)update->seed), key1((unsigned)(update->seed >> 32)), counter0(0), counter1(step),
        counter2(update->episode), counter3((unsigned)purpose << 24 | ((unsigned)row & 0xffffffu)), block0(0),
        block1(0), block2(0), block3(0), used(4) {}

  __device__ inline void next_block() {
    unsigned a = counter0, b = counter1, c = counter2, d = counter3, k = key0, l = key1;
    for (int round = 0; round < 10; ++round) {
      const unsigned long long p = (unsigned long long)a * 0xD2511F53u;
      const unsigned long long q = (unsigned long long)c * 0xCD9E8D57u;
      const unsigned old_b = b, old_d = d;
      a = (unsigned)(q >> 32) ^ old_b ^ k;
      b = (unsigned)q;
      c = (unsigned)(p >> 32) ^ old_d ^ l;
      d = (unsigned)p;
      k += 0x9E3779B9u;
      l += 0xBB67AE85u;
    }
    block0 = a;
    block1 = b;
    block2 = c;
    block3 = d;
    counter0 += 1;
    used = 0;
  }

  __device__ inline unsigned bits() {
    if (used == 4) next_block();
    used += 1;
    return used == 1 ? block0 : used == 2 ? block1 : used == 3 ? block2 : block3;
  }

  // Uniform in (0, 1).
  __device__ inline double uniform() {
    const unsigned long long high = bits();
    const unsigned long long all = high << 32 | bits();
    return ((double)(all >> 12) + 0.5) / 4503599627370496.0;
  }

  // Uniform in 0 … n-1.
  __device__ inline int below(int n) {
    const unsigned long long count = n < 1 ? 1 : n;
    const unsigned long long reject = (1ull << 32) % count;
    for (;;) {
      const unsigned long long product = bits() * count;
      if ((product & 0xffffffffull) >= reject) return (int)(product >> 32);
    }
  }

  __device__ inline bool chance(double p) { return uniform() < p; }
};

// ---------------------------------------------------------------------------------------------------------------
// What a world is given.

struct Row {
  const Lesson *lesson;
  int row;
  int *ints;
  float *floats;

  __device__ inline Row(const Lesson *l, int r)
      : lesson(l), row(r), ints(l->row_ints + (long long)r * l->int_count),
        floats(l->row_floats + (long long)r * l->float_count) {}

  __device__ inline Stream stream(unsigned step) const { return Stream(lesson->update, WORLD, row, step); }
};

__device__ static inline void swap(int *items, int a, int b) {
  const int kept = items[a];
  items[a] = items[b];
  items[b] = kept;
}

__device__ static inline void shuffle(Stream &stream, int *items, int count) {
  for (int k = count - 1; k >= 1; --k) swap(items, k, stream.below(k + 1));
}

// ---------------------------------------------------------------------------------------------------------------
// What all episodes begin and end with.

__device__ static inline long long thread() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ static inline double *results_of(const Lesson *l, int row) { return l->results + (long long)row * RESULTS; }

__device__ static inline void clear_results(const Lesson *l, int row) {
  double *results = results_of(l, row);
  for (int k = 0; k < RESULTS; ++k) results[k] = 0.0;
  results[BROKEN] = -1.0;
}

// The penalties of a row, over its steps.
__device__ static inline double penalty_of(const Lesson *l, int row) {
  double penalty = 0.0;
  for (int step = 0; step < l->steps; ++step) {
    const float *frame = frame_of(l, step, row);
    float of_step = 0.0f;
    for (int k = 0; k < l->penalty_count; ++k) of_step = of_step + frame[l->penalties[k]];
    penalty += (double)of_step;
  }
  return penalty;
}
