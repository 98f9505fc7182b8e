// The maze of `maze.rs` on a device: the same cells, the same numbers.

// What it is told, and what it remembers of a row.
enum { SIZE, STEPS, PRINTED, STARTS_UP, FREE, CELLS };
enum { PAY, WALL_PENALTY };
enum { GOAL, CELL, LAST_ACTION };
enum { LAST_REWARD };

__device__ static inline int maze_centre(const int *told) { return told[SIZE] / 2 * told[SIZE] + told[SIZE] / 2; }

__device__ static inline bool is_wall(const int *told, int cell) {
  const int size = told[SIZE], row = cell / size, column = cell % size, last = size - 1;
  const bool border = row == 0 || column == 0 || row == last || column == last;
  const bool pillar = row % 2 == 0 && column % 2 == 0;
  return border || (pillar && cell != maze_centre(told));
}

// A random free cell other than one.
__device__ static inline int random_free(const int *told, Stream stream, int other_than) {
  for (;;) {
    const int cell = told[CELLS + stream.below(told[FREE])];
    if (cell != other_than) return cell;
  }
}

__device__ static inline void world_begin(const Row &row) {
  const int *told = row.lesson->ints;
  row.ints[GOAL] = random_free(told, row.stream(0), maze_centre(told));
  row.ints[CELL] = maze_centre(told);
  row.ints[LAST_ACTION] = told[STARTS_UP] ? 0 : -1;
  row.floats[LAST_REWARD] = 0.0f;
}

__device__ static inline float world_reward(const Row &row) { return row.floats[LAST_REWARD]; }

__device__ static inline void world_observe(const Row &row, int step, float *input) {
  const int *told = row.lesson->ints;
  const int size = told[SIZE], cell = row.ints[CELL], action = row.ints[LAST_ACTION];
  for (int k = 0; k < 9; ++k) input[k] = is_wall(told, cell + k / 3 * size + k % 3 - size - 1) ? 1.0f : 0.0f;
  if (told[PRINTED]) {
    if (action >= 0) input[9 + action] = 1.0f;
    input[13] = world_reward(row);
    return;
  }
  input[10] = 1.0f;
  input[11] = (float)step / (float)told[STEPS];
  input[12] = world_reward(row);
  if (action >= 0) input[13 + action] = 1.0f;
}

__device__ static inline float world_act(const Row &row, int step, int action) {
  const int *told = row.lesson->ints;
  const int size = told[SIZE], cell = row.ints[CELL];
  const int next = action == 0 ? cell - size : action == 1 ? cell + size : action == 2 ? cell - 1 : cell + 1;
  row.ints[LAST_ACTION] = action;
  float reward = 0.0f;
  if (is_wall(told, next))
    reward = reward - row.lesson->floats[WALL_PENALTY];
  else
    row.ints[CELL] = next;
  if (row.ints[CELL] == row.ints[GOAL]) {
    reward = reward + row.lesson->floats[PAY];
    row.ints[CELL] = random_free(told, row.stream((unsigned)step + 1), row.ints[GOAL]);
  }
  row.floats[LAST_REWARD] = reward;
  return reward;
}
