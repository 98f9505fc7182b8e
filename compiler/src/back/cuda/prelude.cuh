#ifdef __CUDACC__
#pragma nv_diag_suppress 177  // no spec uses all of what follows
#endif

// Memory of a batch. Regions of one kind follow each other: those of a step for all rows of the batch, then
// those of the next step. Lengths are in floats.
struct Tape {
  float *frames;        // [frame][row][FRAME]: the vectors of a step
  float *adjoints;      // [step][row][ADJOINT]: their cotangents
  float *snapshots;     // [number][row][MATRICES]: matrix states before steps, kept or rebuilt, going backward
  float *carry;         // [row][MATRICES]: matrix states that a step finds; going backward [row][CARRY]
  float *next;          // [row][MATRICES]: those that it leaves, perhaps the same memory
  float *ends;          // [row][MATRICES]: cotangents of the matrix states, at the end and at the start
  float *grads;         // [row][GRADS]: gradients of the parameters, summed over steps
  float *logs;          // [row][LOGS]
  float *log_bars;      // [row][LOG_BARS]
  float *scratch;       // [step of the launch][row][SCRATCH]
  const float *params;  // [PARAMS]: what is the same for all rows
  float penalty_bar;    // the cotangent of the penalty
  int rows;             // of the batch
};

// The step that a kernel is launched for: numbers of its frame, of its adjoint frame, and of the snapshot
// before it. Kernels that stand apart from the loop over time take several steps: gridDim.y of them.
struct At {
  int frame, adjoint, snapshot;
};

// The region with this number that belongs to the row of this block.
__device__ static inline float *region(float *all, int number, int length) {
  return all + ((long long)number * gridDim.x + blockIdx.x) * length;
}

// The region with this number that belongs to a row of a batch of so many rows.
__device__ static inline float *region_of(float *all, int number, int length, int row, int rows) {
  return all + ((long long)number * rows + row) * length;
}

__device__ static inline float infinity() { return __int_as_float(0x7f800000); }
__device__ static inline float not_a_number() { return __int_as_float(0x7fc00000); }

// The second one unless the first is less (greater): what a NaN does is part of the meaning.
__device__ static inline float lesser(float a, float b) { return a < b ? a : b; }
__device__ static inline float greater(float a, float b) { return a > b ? a : b; }

// 2^x for an integer x between -126 and 127.
__device__ static inline float power_of_two(float x) {
  return __int_as_float((int)(((unsigned)__float2int_rz(x) + 127u) << 23));
}

// x = mantissa(x) * 2^exponent(x), for positive normal numbers; the mantissa is at least 1 and less than 2.
__device__ static inline float exponent(float x) {
  return (float)((int)((unsigned)__float_as_int(x) >> 23) - 127);
}
__device__ static inline float mantissa(float x) {
  return __int_as_float((__float_as_int(x) & 0x007fffff) | 0x3f800000);
}

// Sums have eight lanes. This thread's lane takes the numbers at lane, lane + 8, lane + 16, ...; a sum of
// products is a chain of fused multiply-adds.
__device__ static inline float chain(float sum, const float *v, int count) {
  for (int k = threadIdx.x % 8; k < count; k += 8) sum = sum + v[k];
  return sum;
}
__device__ static inline float chain(float sum, const float *v, const float *w, int count) {
  for (int k = threadIdx.x % 8; k < count; k += 8) sum = fmaf(v[k], w[k], sum);
  return sum;
}
__device__ static inline float chain_max(float best, const float *v, int count) {
  for (int k = threadIdx.x % 8; k < count; k += 8) best = best < v[k] ? v[k] : best;
  return best;
}

// The eight lanes of a sum: neighbours, then neighbouring pairs, then the halves. All threads call it.
__device__ static inline float sum_lanes(float x) {
  x = x + __shfl_xor_sync(0xffffffffu, x, 1);
  x = x + __shfl_xor_sync(0xffffffffu, x, 2);
  return x + __shfl_xor_sync(0xffffffffu, x, 4);
}

// Sums over COLUMNS neighbouring threads: the first half and the second, and so on. Of POINTS sums each thread
// gets one: neighbours the same, the first COLUMNS / POINTS threads the first.
template <int COLUMNS, int POINTS>
__device__ static inline float sum_halves(float (&x)[POINTS]) {
  const unsigned all = (0xffffffffu >> (32 - COLUMNS)) << (threadIdx.x % 32 / COLUMNS * COLUMNS);
  int half = COLUMNS / 2;
#pragma unroll
  for (int n = POINTS / 2; n > 0; n /= 2, half /= 2) {
    const bool is_upper = threadIdx.x & half;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const float given = is_upper ? x[k] : x[k + n], kept = is_upper ? x[k + n] : x[k];
      x[k] = kept + __shfl_xor_sync(all, given, half);
    }
  }
#pragma unroll
  for (; half > 0; half /= 2) x[0] = x[0] + __shfl_xor_sync(all, x[0], half);
  return x[0];
}

// The largest of eight lanes, from the first lane on. All threads call it.
__device__ static inline float max_lanes(float x) {
  const int first = threadIdx.x % 32 / 8 * 8;
  float best = __shfl_sync(0xffffffffu, x, first);
  for (int k = 1; k < 8; ++k) {
    const float other = __shfl_sync(0xffffffffu, x, first + k);
    best = best < other ? other : best;
  }
  return best;
}

// A series of vectors: the first, and the distance between two.
struct Series {
  const float *first;
  int stride;
};

// sum[j,i] += a_p[j] * b_p[i] over the products p of a series of steps and rows, a thread for each j and i.
// The products are added in order; every 512 of them, and the rest, are rounded once.
template <int POST, int PRE>
__device__ static inline void outer_products(Series a, Series b, int count, double *sum) {
  __shared__ float as[16][17], bs[16][17];
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int j = blockIdx.y * 16 + y, i = blockIdx.x * 16 + x;
  double total = 0.0;
  float part = 0.0f;
  for (int first = 0; first < count; first += 16) {
    const int p = first + y, from_j = blockIdx.y * 16 + x;
    as[y][x] = p < count && from_j < POST ? a.first[(long long)p * a.stride + from_j] : 0.0f;
    bs[y][x] = p < count && i < PRE ? b.first[(long long)p * b.stride + i] : 0.0f;
    __syncthreads();
    for (int k = 0; k < 16 && first + k < count; ++k) part = fmaf(as[k][y], bs[k][x], part);
    __syncthreads();
    if ((first + 16) % 512 == 0) {
      total += part;
      part = 0.0f;
    }
  }
  if (j < POST && i < PRE) sum[j * PRE + i] += total + part;
}

// sum[k] += the gradients of all rows, in their order. Launched for at least GRADS threads.
extern "C" __global__ void add_rows(const float *grads, int rows, int length, double *sum) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= length) return;
  double total = 0.0;
  for (int row = 0; row < rows; ++row) total += grads[(long long)row * length + k];
  sum[k] += total;
}
