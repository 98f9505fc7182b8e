// The characters of `one_shot/mod.rs` on a device: the same episodes, number by number.

// What it is told: sizes; of every character of training its first drawing and how many there are; all drawings, four
// pixels in a number, the first one lowest.
enum { SIDE, WAYS, SHOTS, ROTATIONS, POOL, CHARACTERS };
// What it remembers of a row: the class that is asked for, the views of all steps, and while these are drawn, what was
// chosen and which places a choice has touched.
enum { TESTED, VIEWS };
// A drawing as it is shown: the class, the drawing, quarters of a turn.
enum { CLASS, DRAWING, TURNS, VIEW };

// So many different numbers below `n`, in random order: a shuffle that stops early, over the places that it touched.
__device__ static inline void distinct(Stream &stream, int n, int count, int *chosen, int *touched) {
  int known = 0;
  for (int k = 0; k < count; ++k) {
    const int at = k + stream.below(n - k);
    int found = at, own = k, slot = known;
    for (int t = 0; t < known; ++t) {
      if (touched[2 * t] == k) own = touched[2 * t + 1];
      if (touched[2 * t] == at) {
        found = touched[2 * t + 1];
        slot = t;
      }
    }
    touched[2 * slot] = at;
    touched[2 * slot + 1] = own;
    if (slot == known) ++known;
    chosen[k] = found;
  }
}

__device__ static inline void put_view(int *view, int label, int drawing, int turns) {
  view[CLASS] = label;
  view[DRAWING] = drawing;
  view[TURNS] = turns;
}

__device__ static inline void world_begin(const Row &row) {
  const int *told = row.lesson->ints;
  const int ways = told[WAYS], shots = told[SHOTS], count = ways * shots;
  int *views = row.ints + VIEWS, *places = views + VIEW * (count + 1);
  int *drawings = places + ways, *touched = drawings + shots + 1;
  Stream stream = row.stream(0);
  distinct(stream, told[POOL], ways, places, touched);
  const int tested = row.ints[TESTED] = stream.below(ways);
  for (int label = 0; label < ways; ++label) {
    const int *character = told + CHARACTERS + 2 * places[label];
    const int turns = stream.below(told[ROTATIONS]), is_tested = label == tested;
    distinct(stream, character[1], shots + 1, drawings, touched);
    if (is_tested) put_view(views + VIEW * count, label, character[0] + drawings[0], turns);
    for (int k = 0; k < shots; ++k)
      put_view(views + VIEW * (label * shots + k), label, character[0] + drawings[k + is_tested], turns);
  }
  for (int k = count - 1; k >= 1; --k) {
    const int other = stream.below(k + 1);
    for (int part = 0; part < VIEW; ++part) swap(views, VIEW * k + part, VIEW * other + part);
  }
}

__device__ static inline const int *view_of(const Row &row, int step) { return row.ints + VIEWS + VIEW * step; }

__device__ static inline float world_shown(const Row &row, int step, int k) {
  const int *told = row.lesson->ints, *view = view_of(row, step);
  const int side = told[SIDE], end = side - 1, r = k / side, c = k % side;
  int from = k;
  if (view[TURNS] == 1) from = c * side + end - r;
  if (view[TURNS] == 2) from = (end - r) * side + end - c;
  if (view[TURNS] == 3) from = (end - c) * side + r;
  const long long pixel = (long long)view[DRAWING] * side * side + from;
  const unsigned four = (unsigned)told[CHARACTERS + 2 * told[POOL] + pixel / 4];
  return (float)(four >> (int)(pixel % 4 * 8) & 255u) / 255.0f;
}

__device__ static inline float world_label(const Row &row, int step, int k) {
  return step + 1 < row.lesson->steps && view_of(row, step)[CLASS] == k ? 1.0f : 0.0f;
}

__device__ static inline int world_targets(const Row &row, int step) {
  return step + 1 == row.lesson->steps ? row.lesson->ints[WAYS] : 0;
}

__device__ static inline float world_target(const Row &row, int, int k) { return k == row.ints[TESTED] ? 1.0f : 0.0f; }

__device__ static inline void world_scores(const Row &row, const float *output, double *scores) {
  int likeliest = 0;
  for (int k = 1; k < row.lesson->ints[WAYS]; ++k)
    if (output[k] > output[likeliest]) likeliest = k;
  scores[0] = likeliest == row.ints[TESTED] ? 1.0 : 0.0;
}
