// ---- Whole sequences in one launch.

// The steps that a kernel takes. `frame` is the number of the first step's frame; the frame before it has the
// initial states. `adjoint` is the number of the first step's adjoint frame. `done` steps of the stretch are
// over when a forward kernel begins; a backward kernel takes all of a stretch.
struct Span {
  int frame, adjoint, steps, interval, done;
  float *checkpoints;  // [number][row][MATRICES]: the matrix states before every interval-th step; null for none
};

// A row of the batch.
struct RowOf {
  long long row, rows;
  __device__ inline float *operator()(float *all, int number, int length) const {
    return all + (number * rows + row) * length;
  }
};

#ifdef __CUDACC__
__device__ static inline float *dynamic_shared() {
  extern __shared__ __align__(16) float dynamic[];
  return dynamic;
}
// The same place in the shared memory of another block of the cluster.
__device__ static inline float *of_block(float *own, int rank) {
#if __CUDA_ARCH__ >= 900
  float *other;
  asm("mapa.u64 %0, %1, %2;" : "=l"(other) : "l"(own), "r"(rank));
  return other;
#else
  return own;
#endif
}
// All threads of all blocks of the cluster have come, and see what the others have written. Devices before
// sm_90 have no clusters, and kernels for them none of these.
__device__ static inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// Copies 16 bytes to shared memory while other things happen.
__device__ static inline void copy_ahead(float *to, const float *from) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
// What stands behind it reads memory no earlier: in a loop that is unrolled, a bound on the registers that
// reads ahead would take.
__device__ static inline void pause() { __syncwarp(); }
// The number of this thread, of which the compiler does not know that it stays the same: what follows from it (places,
// conditions) is computed where it is needed. Known, it would be computed before the loop over time and held in registers.
__device__ static inline int this_thread() {
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}
// This thread's copies have arrived.
__device__ static inline void wait_for_copies() {
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}
#endif

// Begins to fetch a region: a multiple of four floats.
__device__ static inline void fetch(float *to, const float *from, int length) {
  for (int k = 4 * threadIdx.x; k < length; k += 4 * blockDim.x) copy_ahead(to + k, from + k);
}

// A block's share of a region that all blocks have.
__device__ static inline void put(float *to, const float *from, int length, int rank, int cluster) {
  for (int k = rank * blockDim.x + threadIdx.x; k < length; k += cluster * blockDim.x) to[k] = from[k];
}

// The place of a frame in a ring.
template <int SLOTS>
__device__ static inline int in_ring(int number) {
  return (number + 4 * SLOTS) % SLOTS;
}

// Eight rows, each summed over the columns of this thread's warp that lie beside its own (COLUMNS: 8, 16, 32):
// this thread gets the sum of the row with its number within eight.
template <int COLUMNS>
__device__ static inline float lane_row_sum(float (&row)[8]) {
  const bool fours = threadIdx.x & 4, twos = threadIdx.x & 2, ones = threadIdx.x & 1;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float given = fours ? row[k] : row[k + 4], kept = fours ? row[k + 4] : row[k];
    row[k] = kept + __shfl_xor_sync(0xffffffffu, given, 4);
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float given = twos ? row[k] : row[k + 2], kept = twos ? row[k + 2] : row[k];
    row[k] = kept + __shfl_xor_sync(0xffffffffu, given, 2);
  }
  const float given = ones ? row[0] : row[1], kept = ones ? row[1] : row[0];
  float sum = kept + __shfl_xor_sync(0xffffffffu, given, 1);
  if (COLUMNS >= 16) sum = sum + __shfl_xor_sync(0xffffffffu, sum, 8);
  if (COLUMNS >= 32) sum = sum + __shfl_xor_sync(0xffffffffu, sum, 16);
  return sum;
}
