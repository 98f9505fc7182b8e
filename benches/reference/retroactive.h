// The network of specs/backpropamine/retroactive.bpm by hand: outputs, and gradients of all parameters.
#ifndef RETROACTIVE_H
#define RETROACTIVE_H

// Hidden neurons N, inputs I, actions A, rows B, steps T.
typedef struct {
    int neurons, inputs, actions, batch, steps;
} Sizes;

// Parameters of the spec or their gradients; matrices are row-major, [post, pre].
typedef struct {
    float *Wx, *bx;   // [N, I], [N]
    float *W, *alpha; // [N, N]
    float *eta;       // one number
    float *wm, *bm;   // [N], one number
    float *Wo, *bo;   // [A, N], [A]
    float *wv, *bv;   // [N], one number
} Params;

// What goes into one run. States are null where all of them start at zero.
typedef struct {
    Sizes sizes;
    Params params;
    const float *u;          // [T, B, I]
    const float *y, *H, *E;  // [B, N], [B, N, N], [B, N, N]
    const float *policy_bar; // [T, B, A], cotangents of outputs
    const float *value_bar;  // [T, B]
} Problem;

// What comes out of it.
typedef struct {
    float *policy, *value; // [T, B, A], [T, B]
    Params grad;
} Result;

typedef struct Scratch Scratch;

// Memory for all runs of a problem of these sizes.
Scratch *scratch_new(Sizes sizes);
void scratch_free(Scratch *scratch);

// Outputs only; keeps nothing that a backward pass would need.
void forward(Scratch *scratch, const Problem *problem, Result *result);

// Outputs, and the gradients of sum(policy * policy_bar) + sum(value * value_bar).
void forward_backward(Scratch *scratch, const Problem *problem, Result *result);

#endif
