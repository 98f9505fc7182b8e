// How fast the network can be on one core, with AVX2 and FMA:
//
//   y'      = tanh(Wx u + bx + (W + alpha H) y)        m  = tanh(wm y' + bm)
//   H'[j,i] = clip(H + m E, -1, 1)                     E' = (1 - eta) E + eta y'[j] y[i]
//
// * A row of the batch (without gradients: a pair) lives through all its steps before the next one
//   begins, so that its matrices stay in the second-level cache.
// * A matrix is cut into tiles of up to four vectors of receiving neurons j and stored
//   [tile][i][vectors]: every stream is sequential, and sums over i stay in registers.
// * Writing the states of step t - 1 and reading them in step t is one pass.
// * Backward: states are snapshots at every sqrt(T)-th step. From there they are replayed, every
//   element by itself in registers. One pass over the synapses does the end of the reverse of step
//   t + 1 and the beginning of that of step t.
// * The gradient of W needs no pass: it is a product of two matrices [T, N], as all others but that
//   of alpha.
#include "retroactive.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { LANES = 8, TILE = 4 };

// Rows that share loads of W and alpha: as many accumulators as there are registers for.
#ifdef __AVX512VL__
enum { TOGETHER = 2 };
#else
enum { TOGETHER = 1 };
#endif

typedef __m256 Vec;

INLINE Vec load(const float *x) { return _mm256_load_ps(x); }
INLINE void store(float *x, Vec v) { _mm256_store_ps(x, v); }
INLINE Vec all(float x) { return _mm256_set1_ps(x); }
INLINE Vec fmadd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
INLINE Vec clip(Vec x) { return _mm256_max_ps(_mm256_min_ps(x, all(1)), all(-1)); }

INLINE float sum_lanes(Vec v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// The sums of eight vectors.
INLINE Vec sum_rows(const float *x) {
    Vec a = _mm256_hadd_ps(load(x), load(x + 8)), b = _mm256_hadd_ps(load(x + 16), load(x + 24));
    Vec c = _mm256_hadd_ps(load(x + 32), load(x + 40)), d = _mm256_hadd_ps(load(x + 48), load(x + 56));
    Vec low = _mm256_hadd_ps(a, b), high = _mm256_hadd_ps(c, d);
    return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// A rational approximation, good to a few units in the last place.
INLINE Vec tanh8(Vec x) {
    x = _mm256_max_ps(_mm256_min_ps(x, all(7.90531110763549805f)), all(-7.90531110763549805f));
    Vec s = mul(x, x), p = all(-2.76076847742355e-16f), q = all(1.19825839466702e-06f);
    p = fmadd(p, s, all(2.00018790482477e-13f));
    p = fmadd(p, s, all(-8.60467152213735e-11f));
    p = fmadd(p, s, all(5.12229709037114e-08f));
    p = fmadd(p, s, all(1.48572235717979e-05f));
    p = fmadd(p, s, all(6.37261928875436e-04f));
    p = fmadd(p, s, all(4.89352455891786e-03f));
    q = fmadd(q, s, all(1.18534705686654e-04f));
    q = fmadd(q, s, all(2.26843463243900e-03f));
    q = fmadd(q, s, all(4.89352518554385e-03f));
    return _mm256_div_ps(mul(x, p), q);
}

// --- Tiles ---------------------------------------------------------------------------------------

static int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// The width of the next tile, of as equal ones as possible.
INLINE int tile_width(int vectors_left) {
    int tiles = (vectors_left + TILE - 1) / TILE;
    return (vectors_left + tiles - 1) / tiles;
}

// Calls a kernel with the width of the tile as a constant.
#define WITH_WIDTH(width, kernel, ...)                                                                       \
    switch (width) {                                                                                         \
    case 4: kernel(4, __VA_ARGS__); break;                                                                   \
    case 3: kernel(3, __VA_ARGS__); break;                                                                   \
    case 2: kernel(2, __VA_ARGS__); break;                                                                   \
    default: kernel(1, __VA_ARGS__); break;                                                                  \
    }

// Copies [post, pre] to tiles, as row `row` of `rows` that are interleaved.
static void pack(float *tiles, const float *matrix, int n, int row, int rows) {
    for (int v = 0, w; v < padded(n) / LANES; v += w) {
        w = tile_width(padded(n) / LANES - v);
        float *tile = tiles + (size_t)v * LANES * n * rows;
        for (int i = 0; i < n; i++)
            for (int l = 0; l < w * LANES; l++) {
                int j = v * LANES + l;
                tile[(i * rows + row) * w * LANES + l] = j < n ? matrix[(size_t)j * n + i] : 0;
            }
    }
}

static void unpack(float *matrix, const float *tiles, int n) {
    for (int v = 0, w; v < padded(n) / LANES; v += w) {
        w = tile_width(padded(n) / LANES - v);
        const float *tile = tiles + (size_t)v * LANES * n;
        for (int i = 0; i < n; i++)
            for (int l = 0; l < w * LANES && v * LANES + l < n; l++)
                matrix[(size_t)(v * LANES + l) * n + i] = tile[i * w * LANES + l];
    }
}

static void transpose(float *to, int ld, const float *from, int rows, int columns) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) to[(size_t)c * ld + r] = from[(size_t)r * columns + c];
}

static void transpose_back(float *to, const float *from, int ld, int rows, int columns) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) to[(size_t)r * columns + c] = from[(size_t)c * ld + r];
}

// --- Products of small matrices ------------------------------------------------------------------

// C[r, j] += sum over d of a[r, d] B[d, j], where a has any strides, for a tile of j and `rows` rows.
INLINE void product_tile(const int w, const int rows, float *restrict C, size_t ldc, const float *restrict a,
                         size_t row_stride, size_t depth_stride, int depth, const float *restrict B,
                         size_t ldb) {
    Vec sum[4][TILE];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < w; v++) sum[r][v] = load(C + r * ldc + v * LANES);
    for (int d = 0; d < depth; d++) {
        UNROLL for (int r = 0; r < rows; r++) {
            Vec x = all(a[r * row_stride + d * depth_stride]);
            UNROLL for (int v = 0; v < w; v++) sum[r][v] = fmadd(x, load(B + d * ldb + v * LANES), sum[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < w; v++) store(C + r * ldc + v * LANES, sum[r][v]);
}

static void product(float *C, size_t ldc, int rows, const float *a, size_t row_stride, size_t depth_stride,
                    int depth, const float *B, size_t ldb, int columns) {
    for (int v = 0, w; v < columns / LANES; v += w) {
        w = tile_width(columns / LANES - v);
        const float *b = B + v * LANES;
        for (int r = 0; r < rows;) {
            float *c = C + r * ldc + v * LANES;
            const float *from = a + r * row_stride;
            if (r + 4 <= rows) {
                WITH_WIDTH(w, product_tile, 4, c, ldc, from, row_stride, depth_stride, depth, b, ldb)
                r += 4;
            } else {
                WITH_WIDTH(w, product_tile, 1, c, ldc, from, row_stride, depth_stride, depth, b, ldb)
                r += 1;
            }
        }
    }
}

// --- Passes over the synapses --------------------------------------------------------------------

// Sum over i of (W + alpha H) x_i, with H as it is.
INLINE void read_tile(const int w, const int rows, int n, const float *restrict W, const float *restrict A,
                      const float *restrict H, const float *restrict x, int np, float *restrict sums) {
    for (int r = 0; r < rows; r++) {
        Vec sum[TILE];
        UNROLL for (int v = 0; v < w; v++) sum[v] = all(0);
        for (int i = 0; i < n; i++) {
            UNROLL for (int v = 0; v < w; v++) {
                size_t at = (size_t)(i * w + v) * LANES, own = (size_t)((i * rows + r) * w + v) * LANES;
                sum[v] = fmadd(fmadd(load(A + at), load(H + own), load(W + at)), all(x[r * np + i]), sum[v]);
            }
        }
        UNROLL for (int v = 0; v < w; v++) store(sums + r * np + v * LANES, sum[v]);
    }
}

// What a fused pass of the forward direction reads besides matrices: H' = clip(H + m E),
// E' = decay E + before_i y_j, and then the sum over i of (W + alpha H') y_i. Vectors are [row][np].
typedef struct {
    int n, np;
    float decay;
    const float *m;        // of the step before, by row
    const float *before;   // eta times the activity before y
    const float *y;
    float *sums;
} Forward;

INLINE void forward_tile(const int w, const int rows, const Forward *f, int first, const float *restrict W,
                         const float *restrict A, float *restrict H, float *restrict E) {
    Vec y[2][TILE], sum[2][TILE], m[2], decay = all(f->decay);
    const float *restrict before = f->before, *restrict active = f->y;
    const int n = f->n, np = f->np;
    UNROLL for (int r = 0; r < rows; r++) {
        m[r] = all(f->m[r]);
        UNROLL for (int v = 0; v < w; v++) {
            y[r][v] = load(active + r * np + first + v * LANES);
            sum[r][v] = all(0);
        }
    }
    for (int i = 0; i < n; i++) {
        Vec x[2], b[2];
        UNROLL for (int r = 0; r < rows; r++) {
            x[r] = all(active[r * np + i]);
            b[r] = all(before[r * np + i]);
        }
        UNROLL for (int v = 0; v < w; v++) {
            Vec slow = load(W + (i * w + v) * LANES), alpha = load(A + (i * w + v) * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                const size_t at = ((i * rows + r) * w + v) * LANES;
                Vec e = load(E + at), h = clip(fmadd(m[r], e, load(H + at)));
                store(H + at, h);
                store(E + at, fmadd(b[r], y[r][v], mul(decay, e)));
                sum[r][v] = fmadd(fmadd(alpha, h, slow), x[r], sum[r][v]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < w; v++) store(f->sums + r * np + first + v * LANES, sum[r][v]);
}

// The states of `count` steps from a snapshot: per step, H + m E before the clip, and E.
INLINE void replay_tile(const int w, int n, int np, int first, int count, Vec decay, const float *m,
                        const float *before, const float *y, const float *H, const float *E,
                        float *restrict P, float *restrict trace, size_t size) {
    for (int i = 0; i < n; i++) {
        Vec h[TILE], e[TILE];
        UNROLL for (int v = 0; v < w; v++) {
            h[v] = load(H + (i * w + v) * LANES);
            e[v] = load(E + (i * w + v) * LANES);
        }
        for (int k = 0; k < count; k++) {
            Vec mk = all(m[k]), x = all(before[(size_t)k * np + i]);
            UNROLL for (int v = 0; v < w; v++) {
                size_t at = k * size + (i * w + v) * LANES;
                Vec p = fmadd(mk, e[v], h[v]);
                store(P + at, p);
                store(trace + at, e[v]);
                h[v] = clip(p);
                e[v] = fmadd(x, load(y + (size_t)k * np + first + v * LANES), mul(decay, e[v]));
            }
        }
    }
}

// What the fused reverse pass of step t reads and gives besides matrices. H' is the state after step
// t, G and F the cotangents of H' and E'.
typedef struct {
    int n, np;
    float decay, m;        // m of step t
    const float *x;        // activity before step t
    const float *y;        // activity after step t
    const float *da;       // cotangent of the sums of step t + 1
    float *sums;           // out: sum over i of F x_i, by j
    float *read_bar;       // out: (W + alpha H') da, by i, in lanes
    float *write_bar;      // out: F y_j, by i, in lanes
    Vec m_bar, trace_bar;  // out: sums of the cotangent of H' times E, and of F E
} Backward;

INLINE void backward_tile(const int w, const int is_first, Backward *f, int first, const float *restrict W,
                          const float *restrict A, const float *restrict P, const float *restrict E,
                          float *restrict G, float *restrict F, float *restrict A_bar) {
    const int n = f->n;
    const float *restrict before = f->x, *restrict active = f->y;
    float *restrict read_bar = f->read_bar, *restrict write_bar = f->write_bar;
    Vec y[TILE], da[TILE], sums[TILE], m_bar = f->m_bar, trace_bar = f->trace_bar;
    const Vec m = all(f->m), decay = all(f->decay);
    UNROLL for (int v = 0; v < w; v++) {
        y[v] = load(active + first + v * LANES);
        da[v] = load(f->da + first + v * LANES);
        sums[v] = all(0);
    }
    for (int i = 0; i < n; i++) {
        Vec x = all(before[i]), x_next = all(active[i]);
        Vec read = is_first ? all(0) : load(read_bar + i * LANES);
        Vec write = is_first ? all(0) : load(write_bar + i * LANES);
        UNROLL for (int v = 0; v < w; v++) {
            size_t at = (i * w + v) * LANES;
            Vec p = load(P + at), e = load(E + at), alpha = load(A + at), trace = load(F + at);
            Vec h = clip(p), inside = _mm256_cmp_ps(p, h, _CMP_EQ_OQ);
            Vec outer = mul(x_next, da[v]);
            store(A_bar + at, fmadd(h, outer, load(A_bar + at)));
            read = fmadd(fmadd(alpha, h, load(W + at)), da[v], read);
            Vec g = _mm256_and_ps(inside, fmadd(alpha, outer, load(G + at)));
            store(G + at, g);
            m_bar = fmadd(g, e, m_bar);
            trace_bar = fmadd(trace, e, trace_bar);
            sums[v] = fmadd(trace, x, sums[v]);
            write = fmadd(trace, y[v], write);
            store(F + at, fmadd(m, g, mul(decay, trace)));
        }
        store(read_bar + i * LANES, read);
        store(write_bar + i * LANES, write);
    }
    f->m_bar = m_bar;
    f->trace_bar = trace_bar;
    UNROLL for (int v = 0; v < w; v++) store(f->sums + first + v * LANES, sums[v]);
}

// A_bar += H da_j x_i: what the state before the first step contributes.
static void initial_alpha_bar(int n, const float *H, const float *x, const float *da, float *A_bar) {
    for (int v = 0, w; v < padded(n) / LANES; v += w) {
        w = tile_width(padded(n) / LANES - v);
        for (int i = 0; i < n; i++)
            for (int l = 0; l < w * LANES; l++) {
                size_t at = (size_t)v * LANES * n + i * w * LANES + l;
                A_bar[at] += H[at] * da[v * LANES + l] * x[i];
            }
    }
}

// --- Sequences -----------------------------------------------------------------------------------

struct Scratch {
    Sizes sizes;
    int np;        // neurons, padded
    int readouts;  // logits, value and modulator, padded
    int segment;   // steps from snapshot to snapshot
    size_t size;   // of a matrix
    // Parameters: W and alpha in tiles; Wx transposed; all readouts as rows [Wo; wv; wm], and transposed.
    float *W, *A, *Wx, *bx, *R, *Rt, *rb, decay, eta;
    // One row, or rows together: states; by step, activities from y before the first step on, the same
    // times eta, mapped inputs, modulators; readouts.
    float *H, *E, *y, *scaled, *inputs, *m, *out;
    float *sums;  // over i, of the last pass
    // Backward, of one row: snapshots of H and E; replayed states.
    float *snapshots, *P, *trace;
    float *G, *F, *da, *readout_bar, *out_bar, *read_bar, *write_bar, *write_sums;
    // Gradients: W is [pre, post], alpha in tiles.
    float *W_bar, *A_bar, *Wx_bar, *bx_bar, *R_bar, *rb_bar, eta_bar;
};

static float *numbers(size_t count) {
    size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    float *x = aligned_alloc(64, bytes);
    if (!x) abort();
    return memset(x, 0, bytes);
}

Scratch *scratch_new(Sizes sizes) {
    Scratch *s = calloc(1, sizeof *s);
    if (!s) abort();
    const int n = sizes.neurons, np = padded(n), steps = sizes.steps, ro = padded(sizes.actions + 2);
    s->sizes = sizes, s->np = np, s->readouts = ro, s->size = (size_t)np * n;
    s->segment = (int)lround(sqrt(steps));
    const int segments = (steps + s->segment - 1) / s->segment;
    s->W = numbers(s->size), s->A = numbers(s->size);
    s->Wx = numbers((size_t)sizes.inputs * np), s->bx = numbers(np);
    s->R = numbers((size_t)ro * np), s->Rt = numbers((size_t)np * ro), s->rb = numbers(ro);
    s->H = numbers(TOGETHER * s->size), s->E = numbers(TOGETHER * s->size);
    s->y = numbers((size_t)TOGETHER * (steps + 1) * np);
    s->scaled = numbers((size_t)TOGETHER * (steps + 1) * np);
    s->inputs = numbers((size_t)TOGETHER * steps * np), s->m = numbers((size_t)TOGETHER * steps);
    s->sums = numbers(TOGETHER * np);
    s->out = numbers((size_t)TOGETHER * steps * ro);
    s->snapshots = numbers(2 * s->size * segments);
    s->P = numbers(s->size * s->segment), s->trace = numbers(s->size * s->segment);
    s->G = numbers(s->size), s->F = numbers(s->size);
    s->da = numbers((size_t)steps * np);
    s->readout_bar = numbers((size_t)steps * np), s->out_bar = numbers((size_t)steps * ro);
    s->read_bar = numbers((size_t)np * LANES), s->write_bar = numbers((size_t)np * LANES);
    s->write_sums = numbers(np);
    s->W_bar = numbers((size_t)n * np), s->A_bar = numbers(s->size);
    s->Wx_bar = numbers((size_t)sizes.inputs * np), s->bx_bar = numbers(np);
    s->R_bar = numbers((size_t)ro * np), s->rb_bar = numbers(ro);
    return s;
}

void scratch_free(Scratch *s) {
    float *all[] = {
        s->W, s->A, s->Wx, s->bx, s->R, s->Rt, s->rb, s->H, s->E, s->y, s->scaled, s->inputs, s->m, s->out,
        s->sums, s->snapshots, s->P, s->trace, s->G, s->F, s->da, s->readout_bar, s->out_bar, s->read_bar,
        s->write_bar, s->write_sums, s->W_bar, s->A_bar, s->Wx_bar, s->bx_bar, s->R_bar, s->rb_bar,
    };
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
    free(s);
}

static void take_parameters(Scratch *s, const Params *p) {
    const int n = s->sizes.neurons, actions = s->sizes.actions;
    pack(s->W, p->W, n, 0, 1);
    pack(s->A, p->alpha, n, 0, 1);
    transpose(s->Wx, s->np, p->Wx, n, s->sizes.inputs);
    memcpy(s->bx, p->bx, n * sizeof(float));
    for (int a = 0; a < actions; a++) memcpy(s->R + a * s->np, p->Wo + a * n, n * sizeof(float));
    memcpy(s->R + actions * s->np, p->wv, n * sizeof(float));
    memcpy(s->R + (actions + 1) * s->np, p->wm, n * sizeof(float));
    transpose(s->Rt, s->readouts, s->R, actions + 1, s->np);
    memcpy(s->rb, p->bo, actions * sizeof(float));
    s->rb[actions] = *p->bv, s->rb[actions + 1] = *p->bm;
    s->eta = *p->eta, s->decay = 1 - s->eta;
}

static void begin_rows(Scratch *s, const Problem *q, int b, int rows) {
    const int n = s->sizes.neurons;
    const size_t square = (size_t)n * n;
    memset(s->y, 0, (size_t)rows * s->np * sizeof(float));
    if (!q->H) {
        memset(s->H, 0, rows * s->size * sizeof(float));
        memset(s->E, 0, rows * s->size * sizeof(float));
        return;
    }
    for (int r = 0; r < rows; r++) {
        memcpy(s->y + r * s->np, q->y + (size_t)(b + r) * n, n * sizeof(float));
        pack(s->H, q->H + (b + r) * square, n, r, rows);
        pack(s->E, q->E + (b + r) * square, n, r, rows);
    }
}

static void map_inputs(Scratch *s, const Problem *q, int b, int rows) {
    const Sizes z = s->sizes;
    for (int t = 0; t < z.steps * rows; t++)
        memcpy(s->inputs + (size_t)t * s->np, s->bx, s->np * sizeof(float));
    for (int r = 0; r < rows; r++)
        product(s->inputs + r * s->np, (size_t)rows * s->np, z.steps, q->u + (size_t)(b + r) * z.inputs,
                (size_t)z.batch * z.inputs, 1, z.inputs, s->Wx, s->np, s->np);
}

// y' = tanh(inputs + sums) and m = tanh(wm y' + bm).
static void activate(Scratch *s, const float *sums, const float *inputs, float *y, float *scaled, float *m) {
    const float *wm = s->R + (s->sizes.actions + 1) * s->np;
    Vec dot = all(0), eta = all(s->eta);
    for (int j = 0; j < s->np; j += LANES) {
        Vec x = tanh8(add(load(sums + j), load(inputs + j)));
        store(y + j, x);
        store(scaled + j, mul(eta, x));
        dot = fmadd(load(wm + j), x, dot);
    }
    *m = tanhf(sum_lanes(dot) + s->rb[s->sizes.actions + 1]);
}

INLINE void synapses_forward(Scratch *s, const int rows, int t) {
    const int n = s->sizes.neurons, np = s->np;
    const float *y = s->y + (size_t)t * rows * np;
    for (int v = 0, w; v < np / LANES; v += w) {
        w = tile_width(np / LANES - v);
        size_t at = (size_t)v * LANES * n;
        if (t == 0) {
            WITH_WIDTH(w, read_tile, rows, n, s->W + at, s->A + at, s->H + rows * at, y, np,
                       s->sums + v * LANES)
        } else {
            const float *before = s->scaled + (size_t)(t - 1) * rows * np;
            Forward f = {n, np, s->decay, s->m + (t - 1) * rows, before, y, s->sums};
            WITH_WIDTH(w, forward_tile, rows, &f, v * LANES, s->W + at, s->A + at, s->H + rows * at,
                       s->E + rows * at)
        }
    }
}

static void read_out(Scratch *s, Result *result, int b, int rows) {
    const Sizes z = s->sizes;
    const int ro = s->readouts;
    for (int t = 0; t < z.steps * rows; t++) memcpy(s->out + (size_t)t * ro, s->rb, ro * sizeof(float));
    product(s->out, ro, z.steps * rows, s->y + (size_t)rows * s->np, s->np, 1, z.neurons, s->Rt, ro, ro);
    for (int t = 0; t < z.steps; t++)
        for (int r = 0; r < rows; r++) {
            const float *out = s->out + (size_t)(t * rows + r) * ro;
            const size_t at = (size_t)t * z.batch + b + r;
            memcpy(result->policy + at * z.actions, out, z.actions * sizeof(float));
            result->value[at] = out[z.actions];
        }
}

// Rows b.. through all steps. With snapshots: states before every segment.
INLINE void rows_forward(Scratch *s, const Problem *q, Result *result, int b, const int rows, int snapshots) {
    const int np = s->np;
    begin_rows(s, q, b, rows);
    map_inputs(s, q, b, rows);
    for (int k = 0; k < rows * np; k++) s->scaled[k] = s->eta * s->y[k];
    for (int t = 0; t < s->sizes.steps; t++) {
        synapses_forward(s, rows, t);
        if (snapshots && t % s->segment == 0) {
            float *to = s->snapshots + 2 * s->size * (t / s->segment);
            memcpy(to, s->H, s->size * sizeof(float));
            memcpy(to + s->size, s->E, s->size * sizeof(float));
        }
        for (int r = 0; r < rows; r++) {
            size_t now = (size_t)(t * rows + r) * np, next = now + (size_t)rows * np;
            float *m = s->m + t * rows + r;
            activate(s, s->sums + r * np, s->inputs + now, s->y + next, s->scaled + next, m);
        }
    }
    read_out(s, result, b, rows);
}

static void replay(Scratch *s, int segment, int count) {
    const int n = s->sizes.neurons, np = s->np, from = segment * s->segment;
    const float *H = s->snapshots + 2 * s->size * segment, *E = H + s->size;
    for (int v = 0, w; v < np / LANES; v += w) {
        w = tile_width(np / LANES - v);
        size_t at = (size_t)v * LANES * n;
        WITH_WIDTH(w, replay_tile, n, np, v * LANES, count, all(s->decay), s->m + from,
                   s->scaled + (size_t)from * np, s->y + (size_t)(from + 1) * np, H + at, E + at, s->P + at,
                   s->trace + at, s->size)
    }
}

static Backward synapses_backward(Scratch *s, int t) {
    const int n = s->sizes.neurons, np = s->np;
    const float *P = s->P + s->size * (t % s->segment), *E = s->trace + s->size * (t % s->segment);
    const float *x = s->y + (size_t)t * np;
    Backward f = {n, np, s->decay, s->m[t], x, x + np, s->da + (size_t)(t + 1) * np, s->sums, s->read_bar,
                  s->write_bar, all(0), all(0)};
    for (int v = 0, w; v < np / LANES; v += w) {
        w = tile_width(np / LANES - v);
        size_t at = (size_t)v * LANES * n;
        if (v == 0)
            WITH_WIDTH(w, backward_tile, 1, &f, 0, s->W, s->A, P, E, s->G, s->F, s->A_bar)
        else
            WITH_WIDTH(w, backward_tile, 0, &f, v * LANES, s->W + at, s->A + at, P + at, E + at, s->G + at,
                       s->F + at, s->A_bar + at)
    }
    return f;
}

// The reverse of step t: the cotangents of its activity, its modulator and its sums. The last step has
// no successor, so nothing reads the states after it.
static void step_backward(Scratch *s, int t) {
    const int np = s->np, last = s->sizes.steps - 1, modulator = s->sizes.actions + 1;
    const float *y = s->y + (size_t)(t + 1) * np, *wm = s->R + modulator * np;
    float *bar = s->readout_bar + (size_t)t * np, *da = s->da + (size_t)t * np, dz = 0;
    Vec eta = all(s->eta), eta_bar = all(0);
    if (t < last) {
        Backward f = synapses_backward(s, t);
        dz = sum_lanes(f.m_bar) * (1 - s->m[t] * s->m[t]);
        for (int j = 0; j < np; j += LANES) {
            Vec written = load(s->sums + j), sum = add(load(bar + j), sum_rows(s->read_bar + j * LANES));
            eta_bar = fmadd(load(y + j), written, eta_bar);
            store(bar + j, fmadd(eta, add(written, load(s->write_sums + j)), sum));
            store(s->write_sums + j, sum_rows(s->write_bar + j * LANES));
        }
        s->eta_bar += sum_lanes(eta_bar) - sum_lanes(f.trace_bar);
    }
    s->out_bar[(size_t)t * s->readouts + modulator] = dz;
    for (int j = 0; j < np; j += LANES) {
        Vec x = load(y + j), y_bar = fmadd(all(dz), load(wm + j), load(bar + j));
        store(da + j, mul(y_bar, _mm256_fnmadd_ps(x, x, all(1))));
    }
}

static void take_cotangents(Scratch *s, const Problem *q, int b) {
    const Sizes z = s->sizes;
    for (int t = 0; t < z.steps; t++) {
        float *bar = s->out_bar + (size_t)t * s->readouts;
        const size_t at = (size_t)t * z.batch + b;
        memcpy(bar, q->policy_bar + at * z.actions, z.actions * sizeof(float));
        bar[z.actions] = q->value_bar[at], bar[z.actions + 1] = 0;
    }
    memset(s->readout_bar, 0, (size_t)z.steps * s->np * sizeof(float));
    product(s->readout_bar, s->np, z.steps, s->out_bar, s->readouts, 1, z.actions + 1, s->R, s->np, s->np);
}

// Gradients that are products over time: of W, of what maps inputs, and of what reads out.
static void add_products(Scratch *s, const Problem *q, int b) {
    const Sizes z = s->sizes;
    const int np = s->np, ro = s->readouts;
    const float one = 1;
    const float *u = q->u + (size_t)b * z.inputs;
    product(s->W_bar, np, z.neurons, s->y, 1, np, z.steps, s->da, np, np);
    product(s->Wx_bar, np, z.inputs, u, 1, (size_t)z.batch * z.inputs, z.steps, s->da, np, np);
    product(s->bx_bar, np, 1, &one, 0, 0, z.steps, s->da, np, np);
    product(s->R_bar, np, z.actions + 2, s->out_bar, 1, ro, z.steps, s->y + np, np, np);
    product(s->rb_bar, ro, 1, &one, 0, 0, z.steps, s->out_bar, ro, ro);
}

static void row_backward(Scratch *s, const Problem *q, int b) {
    const int steps = s->sizes.steps;
    take_cotangents(s, q, b);
    memset(s->G, 0, s->size * sizeof(float));
    memset(s->F, 0, s->size * sizeof(float));
    memset(s->write_sums, 0, s->np * sizeof(float));
    for (int segment = (steps - 1) / s->segment; segment >= 0; segment--) {
        const int from = segment * s->segment, to = from + s->segment < steps ? from + s->segment : steps;
        replay(s, segment, to - from);
        for (int t = to - 1; t >= from; t--) step_backward(s, t);
    }
    if (q->H) initial_alpha_bar(s->sizes.neurons, s->snapshots, s->y, s->da, s->A_bar);
    add_products(s, q, b);
}

static void clear_gradients(Scratch *s) {
    const int np = s->np;
    memset(s->W_bar, 0, (size_t)s->sizes.neurons * np * sizeof(float));
    memset(s->A_bar, 0, s->size * sizeof(float));
    memset(s->Wx_bar, 0, (size_t)s->sizes.inputs * np * sizeof(float));
    memset(s->bx_bar, 0, np * sizeof(float));
    memset(s->R_bar, 0, (size_t)s->readouts * np * sizeof(float));
    memset(s->rb_bar, 0, s->readouts * sizeof(float));
    s->eta_bar = 0;
}

static void give_gradients(const Scratch *s, Params *g) {
    const int n = s->sizes.neurons, np = s->np, actions = s->sizes.actions;
    transpose_back(g->W, s->W_bar, np, n, n);
    transpose_back(g->Wx, s->Wx_bar, np, n, s->sizes.inputs);
    unpack(g->alpha, s->A_bar, n);
    memcpy(g->bx, s->bx_bar, n * sizeof(float));
    for (int a = 0; a < actions; a++) memcpy(g->Wo + a * n, s->R_bar + (size_t)a * np, n * sizeof(float));
    memcpy(g->wv, s->R_bar + (size_t)actions * np, n * sizeof(float));
    memcpy(g->wm, s->R_bar + (size_t)(actions + 1) * np, n * sizeof(float));
    memcpy(g->bo, s->rb_bar, actions * sizeof(float));
    *g->bv = s->rb_bar[actions], *g->bm = s->rb_bar[actions + 1], *g->eta = s->eta_bar;
}

void forward(Scratch *s, const Problem *q, Result *result) {
    take_parameters(s, &q->params);
    int b = 0;
    for (; b + TOGETHER <= q->sizes.batch; b += TOGETHER) rows_forward(s, q, result, b, TOGETHER, 0);
    for (; b < q->sizes.batch; b++) rows_forward(s, q, result, b, 1, 0);
}

void forward_backward(Scratch *s, const Problem *q, Result *result) {
    take_parameters(s, &q->params);
    clear_gradients(s);
    for (int b = 0; b < q->sizes.batch; b++) {
        rows_forward(s, q, result, b, 1, 1);
        row_backward(s, q, b);
    }
    give_gradients(s, &result->grad);
}
