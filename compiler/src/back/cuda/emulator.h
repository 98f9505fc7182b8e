// Runs CUDA source on a processor: `g++ -O1 -ffp-contract=off -std=c++17 -shared -fPIC -x c++ -include
// emulator.h NAME.cu`. For tests: slow, and strict.
//
// Blocks run one after the other in an order that is drawn from a seed. Memory that is named to `isolate` is to
// each block what it was before the launch: what blocks write comes together at the end, and two of them may not
// write different numbers to one place. So a launch that needs what another of its blocks does is noticed: isolated,
// it reads what was there before, and otherwise it depends on the order.
//
// The threads of a block run as fibers, each until it has to wait for others: at a barrier or in a shuffle. Which thread runs first is drawn anew, from a seed, after every barrier. So
// a result that depends on the order of threads differs from seed to seed; what a missing barrier lets a
// thread read too early is, under some order, what was there before. Shared memory is full of NaNs when a
// block begins. The blocks of a cluster run together, in any order, each with shared memory of its own.
// Copies that happen meanwhile happen when they are waited for, no earlier.
//
// Errors: a barrier that some threads do not reach, or threads that wait at different barriers; a shuffle
// with a thread that its mask does not name, or that never comes; more threads than there may be.
//
// Not emulated: the order in which other threads see writes to memory within a stretch without barriers,
// warps that run in step, clusters side by side, the limits of a device.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

// Headers of the C++ library would take most of the time of a compilation.
extern "C" {
float fabsf(float);
float fmaf(float, float, float);
float rintf(float);
float sqrtf(float);
}

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
// All shared memory lies in one section, so that it can be overwritten.
#define __shared__ static __attribute__((section("emulated_shared")))

struct Dimensions {
  unsigned x, y, z;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

// A variable, so that the section exists.
__attribute__((used)) __shared__ float emulator_shared[1];
extern "C" char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((visibility("hidden")));

namespace emulator {

constexpr unsigned MOST_THREADS = 16384;
constexpr unsigned MOST_BLOCKS = 16;
constexpr size_t DYNAMIC = 232448;
constexpr unsigned MOST_COPIES = 1024;
constexpr size_t STACK = 64 * 1024;

// What a thread waits for.
enum class Wait { nothing, barrier, cluster, shuffle, ended };

struct Thread {
  ucontext_t context;
  Wait wait;
  int barrier;    // which one
  unsigned mask;  // of the shuffle
  float given, taken;
  unsigned from;  // the lane that it takes from
  unsigned copies;  // that it has begun
};

// 16 bytes that will be copied.
struct Copy {
  float *to;
  const float *from;
};

static Thread threads[MOST_THREADS];
static unsigned count;      // of a cluster
static unsigned per_block;  // threads
static unsigned first_block;
static char *dynamic;  // the shared memory of the blocks of a cluster
static Copy *copies;
static char *stacks;
static ucontext_t scheduler;
static unsigned running;
static const char *error;
static void (*body)(const void *);
static const void *argument;
static uint64_t state;

static unsigned draw(unsigned below) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)((state >> 33) % below);
}

static void fail(const char *what) {
  if (!error) error = what;
}

// Gives way until what this thread waits for has happened.
static void wait(Wait what) {
  Thread &self = threads[running];
  self.wait = what;
  swapcontext(&self.context, &scheduler);
}

// The number of a barrier that is left out, to see whether tests notice; none if negative.
static int left_out = -1;

static void barrier(int number) {
  if (number == left_out) return;
  threads[running].barrier = number;
  wait(Wait::barrier);
}

static void cluster_barrier(int number) {
  if (number == left_out) return;
  threads[running].barrier = number;
  wait(Wait::cluster);
}

// The shared memory of a block of the cluster.
static char *dynamic_of(unsigned rank) { return dynamic + rank * DYNAMIC; }

static float *in_block(float *own, unsigned rank) {
  if (rank >= count / per_block) fail("a block that the cluster does not have");
  const long at = (char *)own - dynamic_of(running / per_block);
  if (at < 0 || at >= (long)DYNAMIC) fail("a place that is not in shared memory, in another block");
  return (float *)(dynamic_of(rank) + at);
}

static void begin_copy(float *to, const float *from) {
  Thread &self = threads[running];
  if (self.copies == MOST_COPIES) return fail("too many copies under way");
  copies[running * MOST_COPIES + self.copies++] = {to, from};
}

static void finish_copies() {
  Thread &self = threads[running];
  for (unsigned k = 0; k < self.copies; ++k) {
    const Copy c = copies[running * MOST_COPIES + k];
    memcpy(c.to, c.from, 16);
  }
  self.copies = 0;
}

static float shuffle(unsigned mask, float value, unsigned from) {
  const unsigned lane = running % 32;
  if (!(mask >> lane & 1) || !(mask >> from & 1)) fail("a shuffle with a thread that is not in its mask");
  Thread &self = threads[running];
  self.mask = mask;
  self.given = value;
  self.from = from;
  wait(Wait::shuffle);
  return threads[running].taken;
}

static void enter() {
  body(argument);
  threads[running].wait = Wait::ended;
  swapcontext(&threads[running].context, &scheduler);
}

// Lets the threads of a shuffle go on if all of them have come.
static bool finish_shuffle(unsigned thread) {
  const unsigned mask = threads[thread].mask, warp = thread / 32 * 32;
  auto is_member = [&](unsigned lane) { return (mask >> lane & 1) != 0; };
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!is_member(lane)) continue;
    if (warp + lane >= count) return false;
    const Thread &t = threads[warp + lane];
    if (t.wait != Wait::shuffle || t.mask != mask) return false;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!is_member(lane)) continue;
    Thread &t = threads[warp + lane];
    t.taken = threads[warp + t.from].given;
    t.wait = Wait::nothing;
  }
  return true;
}

// Lets threads go on if all of them wait at one barrier.
static bool finish_barrier(unsigned first, unsigned end, Wait kind) {
  for (unsigned t = first; t < end; ++t)
    if (threads[t].wait != kind || threads[t].barrier != threads[first].barrier) return false;
  for (unsigned t = first; t < end; ++t) threads[t].wait = Wait::nothing;
  return true;
}

// Some block's barrier, or the cluster's.
static bool finish_barriers() {
  bool any = finish_barrier(0, count, Wait::cluster);
  for (unsigned first = 0; first < count; first += per_block)
    any |= finish_barrier(first, first + per_block, Wait::barrier);
  return any;
}

// Puts a thread at its beginning.
static void begin(unsigned t) {
  Thread &thread = threads[t];
  thread.wait = Wait::nothing;
  thread.copies = 0;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = stacks + t * STACK;
  thread.context.uc_stack.ss_size = STACK;
  thread.context.uc_link = &scheduler;
  makecontext(&thread.context, enter, 0);
}

static unsigned order[MOST_THREADS];

static void swap(unsigned a, unsigned b) {
  const unsigned t = order[a];
  order[a] = order[b];
  order[b] = t;
}

// Draws an order of threads: block after block, warp after warp, or without regard to either.
static void draw_order() {
  for (unsigned t = 0; t < count; ++t) order[t] = t;
  if (count > per_block && draw(2)) {
    const unsigned turn = draw(count / per_block) * per_block;
    for (unsigned t = 0; t < count; ++t) order[t] = (t + turn) % count;
    for (unsigned first = 0; first < count; first += per_block)
      for (unsigned k = per_block; k > 1; --k) swap(first + k - 1, first + draw(k));
    return;
  }
  if (draw(2)) {
    for (unsigned k = count; k > 1; --k) swap(k - 1, draw(k));
    return;
  }
  const unsigned warps = count / 32;  // of all blocks
  for (unsigned k = warps; k > 1; --k) {
    const unsigned other = draw(k);
    for (unsigned lane = 0; lane < 32; ++lane) swap((k - 1) * 32 + lane, other * 32 + lane);
  }
}

// Runs the first thread of the order that can, until none can; a shuffle that is complete lets its threads
// go on at once, so that one warp can be far ahead of others.
static void run_until_all_wait() {
  for (unsigned k = 0; k < count && !error;) {
    const unsigned t = order[k];
    if (threads[t].wait != Wait::nothing) {
      ++k;
      continue;
    }
    running = t;
    threadIdx.x = t % per_block;
    const unsigned block = first_block + t / per_block;
    blockIdx = {block % gridDim.x, block / gridDim.x, 0};
    swapcontext(&scheduler, &threads[t].context);
    if (threads[t].wait == Wait::shuffle && finish_shuffle(t)) k = 0;
    // A block can be far ahead of others of its cluster.
    const unsigned first = t / per_block * per_block;
    if (count > per_block && threads[t].wait == Wait::barrier && finish_barrier(first, first + per_block, Wait::barrier))
      k = 0;
  }
}

static void run_blocks() {
  memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  memset(dynamic, 0xff, count / per_block * DYNAMIC);
  for (unsigned t = 0; t < count; ++t) begin(t);
  for (;;) {
    draw_order();
    run_until_all_wait();
    if (error) return;
    unsigned ended = 0;
    for (unsigned t = 0; t < count; ++t) ended += threads[t].wait == Wait::ended;
    if (ended == count) return;
    if (!finish_barriers()) return fail("a barrier or a shuffle that not all threads reach");
  }
}

// Memory of which no block sees what others write.
static uint32_t *isolated;
static size_t isolated_words;
static uint32_t *kept;  // as it was before the launch, and then what all blocks have written

// Begins a launch, or the next block.
static void begin_isolated() { memcpy(isolated, kept, isolated_words * 4); }

// Takes what a block has written.
static void take_isolated() {
  const uint32_t *before = kept;
  uint32_t *all = kept + isolated_words;
  for (size_t k = 0; k < isolated_words; ++k) {
    if (isolated[k] == before[k]) continue;
    if (all[k] != before[k] && all[k] != isolated[k]) fail("two blocks write different numbers to one place");
    all[k] = isolated[k];
  }
}

// Runs the blocks of a grid, clusters of so many together.
static void run_grid(unsigned groups, unsigned cluster) {
  unsigned *turns = (unsigned *)malloc(groups * sizeof(unsigned));
  if (!turns) return fail("there is no memory for a grid");
  for (unsigned k = 0; k < groups; ++k) turns[k] = k;
  for (unsigned k = groups; k > 1; --k) {
    const unsigned other = draw(k), turn = turns[k - 1];
    turns[k - 1] = turns[other];
    turns[other] = turn;
  }
  if (isolated) {
    kept = (uint32_t *)malloc(isolated_words * 8 + 8);
    memcpy(kept, isolated, isolated_words * 4);
    memcpy(kept + isolated_words, isolated, isolated_words * 4);
  }
  for (unsigned k = 0; k < groups && !error; ++k) {
    first_block = turns[k] * cluster;
    if (isolated) begin_isolated();
    run_blocks();
    if (isolated) take_isolated();
  }
  if (isolated) {
    memcpy(isolated, kept + isolated_words, isolated_words * 4);
    free(kept);
  }
  free(turns);
}

}  // namespace emulator

// Runs `thread` for every thread of a grid, clusters of so many blocks together. Returns null, or what went
// wrong.
extern "C" __global__ const char *emulate(unsigned grid_x, unsigned grid_y, unsigned cluster, unsigned threads,
                                          uint64_t seed, void (*thread)(const void *), const void *argument) {
  using namespace emulator;
  if (threads == 0 || threads > 1024 || threads % 32 != 0) return "no block has so many threads";
  if (cluster == 0 || cluster > MOST_BLOCKS || grid_x % cluster != 0) return "no cluster has so many blocks";
  if (!stacks) stacks = (char *)malloc(MOST_THREADS * STACK);
  if (!dynamic) dynamic = (char *)malloc(MOST_BLOCKS * DYNAMIC);
  if (!copies) copies = (Copy *)malloc(MOST_THREADS * MOST_COPIES * sizeof(Copy));
  if (!stacks || !dynamic || !copies) return "there is no memory for stacks";
  error = nullptr;
  count = threads * cluster;
  per_block = threads;
  body = thread;
  emulator::argument = argument;
  state = seed;
  gridDim = {grid_x, grid_y, 1};
  blockDim = {threads, 1, 1};
  run_grid(grid_x * grid_y / cluster, cluster);
  return error;
}

// From now on no block sees what others of its launch write to this memory; none if it is null.
extern "C" __global__ void isolate(void *memory, unsigned long bytes) {
  emulator::isolated = (uint32_t *)memory;
  emulator::isolated_words = bytes / 4;
}

// Leaves out a barrier from now on.
extern "C" __global__ void leave_out(int number) { emulator::left_out = number; }

// Every barrier in the text has a number of its own, from zero.
#define __syncthreads() emulator::barrier(__COUNTER__)
#define cluster_barrier() emulator::cluster_barrier(__COUNTER__)

static inline float *dynamic_shared() {
  return (float *)emulator::dynamic_of(emulator::running / emulator::per_block);
}
static inline float *of_block(float *own, int rank) { return emulator::in_block(own, rank); }
static inline void copy_ahead(float *to, const float *from) { emulator::begin_copy(to, from); }
static inline void pause() {}
static inline int this_thread() { return (int)threadIdx.x; }
static inline void wait_for_copies() { emulator::finish_copies(); }

static inline float __shfl_sync(unsigned mask, float value, unsigned lane) {
  return emulator::shuffle(mask, value, lane % 32);
}
static inline float __shfl_xor_sync(unsigned mask, float value, unsigned change) {
  return emulator::shuffle(mask, value, (threadIdx.x % 32) ^ change);
}

static inline float __int_as_float(int x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static inline int __float_as_int(float x) {
  int i;
  memcpy(&i, &x, 4);
  return i;
}
// Towards zero; what is too large becomes the largest integer, a NaN zero.
static inline int __float2int_rz(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return 2147483647;
  if (x < -2147483648.0f) return -2147483647 - 1;
  return (int)x;
}
static inline int min(int a, int b) { return a < b ? a : b; }
