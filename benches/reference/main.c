// retroactive PROBLEM [REPEAT [RESULT]]: times a problem in a raw file, prints JSON, writes the result.
//
// Files are numbers of 32 bits in the machine's order (README.md).
#define _GNU_SOURCE
#include "retroactive.h"

#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void fail(const char *what, const char *path) {
    fprintf(stderr, "retroactive: %s %s\n", what, path);
    exit(2);
}

static size_t parameter_count(Sizes z) {
    const size_t n = z.neurons, actions = z.actions;
    return n * (z.inputs + 2 * n + actions + 3) + actions + 3;
}

// Parameters in the order of the spec.
static Params cut_params(Sizes z, float *x) {
    const size_t n = z.neurons, actions = z.actions;
    Params p;
    p.Wx = x, x += n * z.inputs;
    p.bx = x, x += n;
    p.W = x, x += n * n;
    p.alpha = x, x += n * n;
    p.eta = x, x += 1;
    p.wm = x, x += n;
    p.bm = x, x += 1;
    p.Wo = x, x += actions * n;
    p.bo = x, x += actions;
    p.wv = x, x += n;
    p.bv = x;
    return p;
}

static float *numbers(size_t count, const char *path) {
    float *x = malloc(count * sizeof(float));
    if (!x) fail("no memory for", path);
    return x;
}

static Problem read_problem(const char *path) {
    FILE *file = fopen(path, "rb");
    int head[6]; // N, I, A, B, T, and whether there are initial states
    if (!file || fread(head, sizeof head, 1, file) != 1) fail("cannot read", path);
    for (int k = 0; k < 5; k++)
        if (head[k] < 1 || head[k] > 1 << 20) fail("a size is not in 1..2^20 in", path);
    Problem q = {.sizes = {head[0], head[1], head[2], head[3], head[4]}};
    const Sizes z = q.sizes;
    const size_t n = z.neurons, batch = z.batch, cells = (size_t)z.steps * batch;
    const size_t states = head[5] ? batch * n * (1 + 2 * n) : 0;
    const size_t count = parameter_count(z) + cells * z.inputs + states + cells * (z.actions + 1);
    float *x = numbers(count, path);
    if (fread(x, sizeof(float), count, file) != count || fgetc(file) != EOF) fail("wrong length:", path);
    fclose(file);
    q.params = cut_params(z, x), x += parameter_count(z);
    q.u = x, x += cells * z.inputs;
    if (states) q.y = x, q.H = x + batch * n, q.E = q.H + batch * n * n;
    x += states;
    q.policy_bar = x, q.value_bar = x + cells * z.actions;
    return q;
}

static double now_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *name, double *ms, int count) {
    qsort(ms, count, sizeof *ms, ascending);
    printf(", \"%s\": {\"median\": %.6f, \"min\": %.6f, \"max\": %.6f}", name, ms[count / 2], ms[0],
           ms[count - 1]);
}

typedef void Work(Scratch *, const Problem *, Result *);

// One warm-up, then `repeat` runs by both clocks.
static void time_work(const char *name, Work *work, Scratch *s, const Problem *q, Result *result,
                      int repeat) {
    double *wall = calloc(2 * (size_t)repeat, sizeof *wall), *cpu = wall + repeat;
    char label[64];
    if (!wall) fail("no memory for", name);
    work(s, q, result);
    for (int k = 0; k < repeat; k++) {
        const double start = now_ms(CLOCK_MONOTONIC), used = now_ms(CLOCK_THREAD_CPUTIME_ID);
        work(s, q, result);
        cpu[k] = now_ms(CLOCK_THREAD_CPUTIME_ID) - used;
        wall[k] = now_ms(CLOCK_MONOTONIC) - start;
    }
    snprintf(label, sizeof label, "%s_ms", name);
    print_times(label, wall, repeat);
    snprintf(label, sizeof label, "%s_cpu_ms", name);
    print_times(label, cpu, repeat);
    free(wall);
}

// The peak resident memory of this process in MiB.
static double peak_mib(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    long kib = 0;
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1) break;
    if (status) fclose(status);
    return (double)kib / 1024;
}

int main(int count, char **args) {
    if (count < 2 || count > 4) {
        fprintf(stderr, "usage: retroactive PROBLEM [REPEAT [RESULT]]\n");
        return 2;
    }
    const int repeat = count > 2 && atoi(args[2]) > 0 ? atoi(args[2]) : 7;
    _mm_setcsr(_mm_getcsr() | 0x8040); // denormal numbers are zero: they are slow
    Problem problem = read_problem(args[1]);
    const Sizes z = problem.sizes;
    const size_t cells = (size_t)z.steps * z.batch, outputs = cells * (z.actions + 1);
    const double before = peak_mib();
    const size_t total = outputs + parameter_count(z);
    float *memory = numbers(total, args[1]);
    Result result = {memory, memory + cells * z.actions, cut_params(z, memory + outputs)};
    Scratch *scratch = scratch_new(z);

    printf("{\"spec\": \"retroactive\", \"batch\": %d, \"steps\": %d, \"threads\": 1", z.batch, z.steps);
    time_work("forward", forward, scratch, &problem, &result, repeat);
    float *alone = numbers(outputs, args[1]);
    memcpy(alone, memory, outputs * sizeof(float));
    time_work("forward_backward", forward_backward, scratch, &problem, &result, repeat);
    printf(", \"peak_mib\": %.3f}\n", peak_mib() - before);
    if (memcmp(alone, memory, outputs * sizeof(float)) != 0) fail("both ways forward differ on", args[1]);
    if (count > 3) {
        FILE *file = fopen(args[3], "wb");
        if (!file || fwrite(memory, sizeof(float), total, file) != total || fclose(file) != 0)
            fail("cannot write", args[3]);
    }
    scratch_free(scratch);
    free(alone);
    free(memory);
    free(problem.params.Wx);  // all that was read
    return 0;
}
