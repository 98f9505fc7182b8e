// From the gradients of an episode to the parameters of the next one. Every kernel does what its namesake on the
// processor does, operation by operation; a thread has an element, and a sum is one thread's, in the order of the
// processor, unless it says otherwise.

// An operation on values in double precision (`Instruction`), by the numbers that `unbatched.rs` gives them.
enum {
  CONSTANT, WIDEN, GATHER, ADD, ZERO, COPY,
  NEG, TANH, SIGMOID, EXP, LOG, SQRT, SOFTPLUS, RELU, ABS, SIGN,
  PLUS, MINUS, TIMES, OVER, MIN, MAX, LESS, LESS_EQUAL, EQUAL,
  SELECT, CLIP, SPLAT, ROWS, COLS, SUM_ALL, MAX_ALL, SUM_PRE, SUM_POST, CONTRACT, CONTRACT_T, OUTER, ELEMENT, ONE_HOT
};

struct Instruction {
  double *to;
  const double *a, *b, *c;
  const float *narrow;
  double constant;
  long long count;   // elements of the result
  int op;
  int post, pre;     // of the matrix that it is about
  int stride;        // of a gradient in a tile, [pre][stride]; 0 for row-major
  int index;         // of an element
  int is_first;      // whether nothing has been added to the result before
};

// A parameter (`Tensor`).
struct Tensor {
  const double *bar;  // the cotangent of its values
  double low, high;
  long long first, count;  // among all raw numbers
  int learned, range;
  float gradscale;
  int unused;
};

enum { FREE, INTERVAL, ABOVE, BELOW };

// A value that the network's kernels read (`Packed`): of double precision, or else a parameter as it is.
struct Packed {
  float *to;
  const double *wide;
  const float *narrow;
  long long count;
  int pre, stride;  // stride 0: no matrix
};

// Numbers whose squares are added by one thread for each of eight lanes (`Piece`).
struct Piece {
  long long first, count;
};

// A learned initial state (`Start`), where it lies in the memory of the first row.
struct Start {
  const float *values;
  float *to;         // the state before the first step
  const float *bar;  // its cotangent; null where there is none
  double *sum;       // of the cotangents of all rows
  long long to_length, bar_length;  // from row to row
  long long count;
  int pre, stride;  // of a matrix, which lies there as [pre][stride]; stride 0: no matrix
  int rows;
  int own;  // whether rows start there, and not at what they were left at
};

struct Descent {
  const Update *update;
  const double *results;  // of the rows
  const Instruction *code;
  const Tensor *tensors;
  const Packed *packed;
  const Piece *pieces;
  double *sums;   // by piece
  double *verdict;
  float *raw, *values, *gradients, *mean, *square;
  double clip;
  long long pieces_count;
  int rows;
  int adam;
  float decay, epsilon, momentum, keep, add_mean, add_square;
};

// What the host is told: the norm of the gradients, whether all numbers are finite, and whether parameters moved.
enum { NORM, FINITE, MOVED, FACTOR };

__device__ static inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ static inline double softplus(double x) { return (x < 0.0 ? 0.0 : x) + log1p(exp(-fabs(x))); }

__device__ static inline double unary(int op, double x) {
  switch (op) {
    case NEG: return -x;
    case TANH: return tanh(x);
    case SIGMOID: return sigmoid(x);
    case EXP: return exp(x);
    case LOG: return log(x);
    case SQRT: return sqrt(x);
    case SOFTPLUS: return softplus(x);
    case RELU: return x < 0.0 ? 0.0 : x;
    case ABS: return fabs(x);
    default: return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : 0.0;
  }
}

__device__ static inline double binary(int op, double a, double b) {
  switch (op) {
    case PLUS: return a + b;
    case MINUS: return a - b;
    case TIMES: return a * b;
    case OVER: return a / b;
    case MIN: return a < b ? a : b;
    case MAX: return a > b ? a : b;
    case LESS: return a < b ? 1.0 : 0.0;
    case LESS_EQUAL: return a <= b ? 1.0 : 0.0;
    default: return a == b ? 1.0 : 0.0;
  }
}

// Σ v[k · step] · w[k · other], w may be null.
__device__ static inline double sum(const double *v, long long count, long long step, const double *w, long long other) {
  double total = 0.0;
  for (long long k = 0; k < count; ++k) total += w ? v[k * step] * w[k * other] : v[k * step];
  return total;
}

__device__ static inline double largest(const double *v, long long count) {
  double most = with_bits(0xfff0000000000000ull);
  for (long long k = 0; k < count; ++k) most = v[k] > most ? v[k] : most;
  return most;
}

__device__ static inline double clipped(double x, double low, double high) {
  return x < low ? low : x > high ? high : x;
}

// Where an element lies.
__device__ static inline long long place_of(const Start &s, long long e) {
  return s.stride ? e % s.pre * s.stride + e / s.pre : e;
}

// Learned initial states of all rows. Block rows are states.
extern "C" __global__ void place_starts(const Start *starts, int) {
  const Start &s = starts[blockIdx.y];
  const long long n = thread(), row = n / s.count, e = n - row * s.count;
  if (row < s.rows && s.own) s.to[row * s.to_length + place_of(s, e)] = s.values[e];
}

// Their cotangents, over the rows of the batch in their order.
extern "C" __global__ void add_starts(const Start *starts, int) {
  const Start &s = starts[blockIdx.y];
  const long long e = thread();
  if (e >= s.count) return;
  double total = 0.0;
  for (int row = 0; row < s.rows && s.own && s.bar; ++row) total += (double)s.bar[row * s.bar_length + place_of(s, e)];
  s.sum[e] = total;
}

// Launched for at least as many threads as the result has elements.
extern "C" __global__ void evaluate(const Descent *d, int number) {
  const Instruction &i = d->code[number];
  const long long e = thread();
  if (e >= i.count) return;
  const long long pre = i.pre, row = e / (pre < 1 ? 1 : pre), column = e - row * (pre < 1 ? 1 : pre);
  const double *a = i.a, *b = i.b;
  const double before = i.is_first ? 0.0 : i.to[e];
  double x;
  switch (i.op) {
    case CONSTANT: x = i.constant; break;
    case WIDEN: x = (double)i.narrow[e]; break;
    case GATHER: x = before + (i.stride ? a[column * i.stride + row] : a[e]); break;
    case ADD: x = before + a[e]; break;
    case ZERO: x = 0.0; break;
    case COPY: x = a[e]; break;
    case SELECT: x = a[e] != 0.0 ? b[e] : i.c[e]; break;
    case CLIP: x = clipped(a[e], b[0], i.c[0]); break;
    case SPLAT: x = a[0]; break;
    case ROWS: x = a[row]; break;
    case COLS: x = a[column]; break;
    case SUM_ALL: x = sum(a, (long long)i.post * pre, 1, nullptr, 0); break;
    case MAX_ALL: x = largest(a, (long long)i.post * pre); break;
    // `pre` is that of the operand, and the element its row.
    case SUM_PRE: x = sum(a + e * pre, pre, 1, nullptr, 0); break;
    case CONTRACT: x = sum(a + e * pre, pre, 1, b, 1); break;
    case SUM_POST: x = sum(a + e, i.post, pre, nullptr, 0); break;
    case CONTRACT_T: x = sum(a + e, i.post, pre, b, 1); break;
    case OUTER: x = a[row] * b[column]; break;
    case ELEMENT: x = a[i.index]; break;
    case ONE_HOT: x = e == i.index ? a[0] : 0.0; break;
    default: x = i.op <= SIGN ? unary(i.op, a[e]) : binary(i.op, a[e], b[e]); break;
  }
  i.to[e] = x;
}

// The number that the equations see, and its derivative by the raw one.
__device__ static inline double value_of(const Tensor &t, double raw) {
  switch (t.range) {
    case INTERVAL: return t.low + (t.high - t.low) * sigmoid(raw);
    case ABOVE: return t.low + softplus(raw);
    case BELOW: return t.high - softplus(raw);
    default: return raw;
  }
}
__device__ static inline double slope_of(const Tensor &t, double raw) {
  switch (t.range) {
    case INTERVAL: return (t.high - t.low) * sigmoid(raw) * sigmoid(-raw);
    case ABOVE: return sigmoid(raw);
    case BELOW: return -sigmoid(raw);
    default: return 1.0;
  }
}

// Nothing is wrong yet.
extern "C" __global__ void acquit(const Descent *d, int) {
  if (thread() == 0) d->verdict[FINITE] = 1.0;
}

// Gradients by raw numbers. Block rows are parameters.
extern "C" __global__ void chain(const Descent *d, int) {
  const Tensor &t = d->tensors[blockIdx.y];
  const long long e = thread();
  if (e >= t.count) return;
  const long long at = t.first + e;
  float g = (float)t.bar[e];
  if (!is_finite(g)) d->verdict[FINITE] = 0.0;
  if (!t.learned) g = 0.0f;
  else if (t.range != FREE) g = (float)((double)g * slope_of(t, (double)d->raw[at]));
  if (t.learned && t.gradscale != 1.0f) g = g * t.gradscale;
  d->gradients[at] = g;
}

// The sum of the squares of a piece: eight lanes side by side, then the lanes, then what is left. A block for each.
extern "C" __global__ void squares(const Descent *d, int) {
  __shared__ double lanes[8];
  const Piece &piece = d->pieces[blockIdx.x];
  const float *x = d->gradients + piece.first;
  const long long whole = piece.count / 8 * 8;
  if (threadIdx.x < 8) {
    double total = 0.0;
    for (long long k = threadIdx.x; k < whole; k += 8) total += (double)x[k] * (double)x[k];
    lanes[threadIdx.x] = total;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double rest = 0.0, total = 0.0;
  for (long long k = whole; k < piece.count; ++k) rest += (double)x[k] * (double)x[k];
  for (int lane = 0; lane < 8; ++lane) total += lanes[lane];
  d->sums[blockIdx.x] = total + rest;
}

// The norm, the factor that bounds it, and whether parameters may move: not if any number is not finite.
extern "C" __global__ void judge(const Descent *d, int) {
  if (thread() != 0) return;
  double total = 0.0;
  for (long long k = 0; k < d->pieces_count; ++k) total += d->sums[k];
  const double norm = sqrt(total), factor = d->clip / (norm + 1e-6);
  bool finite = d->verdict[FINITE] != 0.0 && norm <= 1.7976931348623157e308;
  d->verdict[FINITE] = finite ? 1.0 : 0.0;
  for (int row = 0; row < d->rows; ++row) finite = finite && d->results[(long long)row * RESULTS + BROKEN] < 0.0;
  d->verdict[NORM] = norm;
  d->verdict[FACTOR] = d->clip > 0.0 && factor < 1.0 ? (double)(float)factor : 1.0;
  d->verdict[MOVED] = finite && d->update->learns ? 1.0 : 0.0;
}

// Adam, or gradient descent with or without momentum, as `optim.rs` has them.
extern "C" __global__ void move(const Descent *d, int) {
  const Tensor &t = d->tensors[blockIdx.y];
  const long long e = thread();
  if (e >= t.count || !t.learned || d->verdict[MOVED] == 0.0) return;
  const long long at = t.first + e;
  const float rate = d->update->rate, factor = (float)d->verdict[FACTOR];
  float p = d->raw[at];
  const float g = factor * d->gradients[at] + d->decay * p;
  if (d->adam) {
    float m = d->mean[at], v = d->square[at];
    m = m + (g - m) * d->add_mean;
    v = v * d->keep + d->add_square * g * g;
    p = p - rate * (m / (sqrtf(v) / d->update->root + d->epsilon));
    d->mean[at] = m;
    d->square[at] = v;
  } else if (d->momentum == 0.0f) {
    p = p - rate * g;
  } else {
    const float v = d->momentum * d->mean[at] + g;
    p = p - rate * v;
    d->mean[at] = v;
  }
  d->raw[at] = p;
}

// The numbers that the equations see.
extern "C" __global__ void images(const Descent *d, int) {
  const Tensor &t = d->tensors[blockIdx.y];
  const long long e = thread();
  if (e >= t.count) return;
  const float raw = d->raw[t.first + e];
  d->values[t.first + e] = t.range == FREE ? raw : (float)value_of(t, (double)raw);
}

// What the network's kernels read, where they read it: matrices as [pre][stride].
extern "C" __global__ void pack(const Descent *d, int) {
  const Packed &p = d->packed[blockIdx.y];
  const long long e = thread();
  if (e >= p.count) return;
  const float x = p.wide ? (float)p.wide[e] : p.narrow[e];
  p.to[p.stride ? e % p.pre * p.stride + e / p.pre : e] = x;
}
