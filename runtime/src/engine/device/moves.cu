// What the host needs on a device for every spec alike.

struct Move {
  float *to;
  const int *to_map;
  const float *from;
  const int *from_map;
  long long to_length, from_length, width, count;
};

// Moves `width` numbers of each of `count` regions. A map says where a number lies within its region; without
// one numbers follow each other. Launched for at least width * count threads.
extern "C" __global__ void move_numbers(const Move m) {
  const long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= m.width * m.count) return;
  const long long region = n / m.width, k = n % m.width;
  const long long to = m.to_map ? m.to_map[k] : k, from = m.from_map ? m.from_map[k] : k;
  m.to[region * m.to_length + to] = m.from[region * m.from_length + from];
}

// Is never run: the driver is asked how many clusters of its blocks can be.
extern "C" __global__ void occupied() {}
