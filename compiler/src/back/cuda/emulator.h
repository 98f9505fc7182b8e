// Runs CUDA source on a processor: `g++ -O1 -ffp-contract=off -std=c++17 -shared -fPIC -x c++ -include
// emulator.h NAME.cu`. For tests: slow, and strict.
//
// Blocks run one after the other, the threads of a block as fibers, each until it has to wait for others:
// at a barrier or in a shuffle. Which thread runs first is drawn anew, from a seed, after every barrier. So
// a result that depends on the order of threads differs from seed to seed; what a missing barrier lets a
// thread read too early is, under some order, what was there before. Shared memory is full of NaNs when a
// block begins.
//
// Errors: a barrier that some threads do not reach, or threads that wait at different barriers; a shuffle
// with a thread that its mask does not name, or that never comes; more threads than there may be.
//
// Not emulated: the order in which other threads see writes to memory within a stretch without barriers,
// warps that run in step, blocks side by side, the limits of a device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <ucontext.h>
#include <vector>

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __launch_bounds__(threads, blocks)
// All shared memory lies in one section, so that it can be overwritten.
#define __shared__ static __attribute__((section("emulated_shared")))

struct Dimensions {
  unsigned x = 1, y = 1, z = 1;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

// A variable, so that the section exists.
__attribute__((used)) __shared__ float emulator_shared[1];
extern "C" char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((visibility("hidden")));

namespace emulator {

constexpr unsigned MOST_THREADS = 1024;
constexpr std::size_t STACK = 64 * 1024;

// What a thread waits for.
enum class Wait { nothing, barrier, shuffle, ended };

struct Thread {
  ucontext_t context;
  Wait wait;
  int barrier;    // which one
  unsigned mask;  // of the shuffle
  float given, taken;
  unsigned from;  // the lane that it takes from
};

static std::vector<Thread> threads;
static std::vector<char> stacks;
static ucontext_t scheduler;
static unsigned running;
static std::string error;
static void (*body)(const void *);
static const void *argument;
static std::uint64_t state;

static unsigned draw(unsigned below) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)((state >> 33) % below);
}

static void fail(const std::string &what) {
  if (error.empty()) error = what;
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
    if (warp + lane >= threads.size()) return false;
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

// Lets all threads go on if they wait at one barrier.
static bool finish_barrier() {
  for (const Thread &t : threads)
    if (t.wait != Wait::barrier || t.barrier != threads[0].barrier) return false;
  for (Thread &t : threads) t.wait = Wait::nothing;
  return true;
}

// Puts a thread at its beginning.
static void begin(unsigned t) {
  Thread &thread = threads[t];
  thread.wait = Wait::nothing;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = stacks.data() + t * STACK;
  thread.context.uc_stack.ss_size = STACK;
  thread.context.uc_link = &scheduler;
  makecontext(&thread.context, enter, 0);
}

// An order of threads: warp after warp, or without regard to warps.
static void shuffle_order(std::vector<unsigned> &order) {
  const unsigned count = (unsigned)order.size();
  for (unsigned k = count; k > 1; --k) std::swap(order[k - 1], order[draw(k)]);
  if (draw(2)) return;
  const unsigned turn = draw(32), flip = draw(2) ? 0xffffffffu : 0;
  auto place = [&](unsigned t) { return ((t / 32 + turn) % 32) ^ flip; };
  std::stable_sort(order.begin(), order.end(), [&](unsigned a, unsigned b) { return place(a) < place(b); });
}

// Runs the first thread of the order that can, until none can; a shuffle that is complete lets its threads
// go on at once, so that one warp can be far ahead of others.
static void run_until_all_wait(const std::vector<unsigned> &order) {
  for (std::size_t k = 0; k < order.size() && error.empty();) {
    const unsigned t = order[k];
    if (threads[t].wait != Wait::nothing) {
      ++k;
      continue;
    }
    running = t;
    threadIdx.x = t;
    swapcontext(&scheduler, &threads[t].context);
    if (threads[t].wait == Wait::shuffle && finish_shuffle(t)) k = 0;
  }
}

static void run_block() {
  std::memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  std::vector<unsigned> order(threads.size());
  for (unsigned t = 0; t < order.size(); ++t) {
    begin(t);
    order[t] = t;
  }
  for (;;) {
    shuffle_order(order);
    run_until_all_wait(order);
    if (!error.empty()) return;
    unsigned ended = 0;
    for (const Thread &t : threads) ended += t.wait == Wait::ended;
    if (ended == threads.size()) return;
    if (!finish_barrier()) return fail("a barrier or a shuffle that not all threads reach");
  }
}

}  // namespace emulator

// Runs `thread` for every thread of a grid. Returns null, or what went wrong.
extern "C" __global__ const char *emulate(unsigned grid_x, unsigned grid_y, unsigned threads, std::uint64_t seed,
                                          void (*thread)(const void *), const void *argument) {
  emulator::error.clear();
  if (threads == 0 || threads > emulator::MOST_THREADS) return "no block has so many threads";
  emulator::threads.resize(threads);
  emulator::stacks.resize(threads * emulator::STACK);
  emulator::body = thread;
  emulator::argument = argument;
  emulator::state = seed;
  gridDim = {grid_x, grid_y, 1};
  blockDim = {threads, 1, 1};
  for (unsigned y = 0; y < grid_y && emulator::error.empty(); ++y) {
    for (unsigned x = 0; x < grid_x && emulator::error.empty(); ++x) {
      blockIdx = {x, y, 0};
      emulator::run_block();
    }
  }
  return emulator::error.empty() ? nullptr : emulator::error.c_str();
}

// Leaves out a barrier from now on.
extern "C" __global__ void leave_out(int number) { emulator::left_out = number; }

// Every barrier in the text has a number of its own, from zero.
#define __syncthreads() emulator::barrier(__COUNTER__)

static inline float __shfl_sync(unsigned mask, float value, unsigned lane) {
  return emulator::shuffle(mask, value, lane % 32);
}
static inline float __shfl_xor_sync(unsigned mask, float value, unsigned change) {
  return emulator::shuffle(mask, value, (threadIdx.x % 32) ^ change);
}

static inline float __int_as_float(int x) {
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}
static inline int __float_as_int(float x) {
  int i;
  std::memcpy(&i, &x, 4);
  return i;
}
// Towards zero; what is too large becomes the largest integer, a NaN zero.
static inline int __float2int_rz(float x) {
  if (std::isnan(x)) return 0;
  if (x >= 2147483648.0f) return 2147483647;
  if (x < -2147483648.0f) return -2147483647 - 1;
  return (int)x;
}
static inline int min(int a, int b) { return a < b ? a : b; }
