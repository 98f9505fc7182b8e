//! What equations become in the step IR.

use compiler::check::check;
use compiler::ir::{Op, Shape, Sink, Source};
use compiler::model::{ConstExpr, Constraint, Init, Law, Model, Noise, ResetPolicy, Role};

fn model(source: &str) -> Model {
    let checked = check(source);
    assert!(
        checked.diagnostics.iter().all(|d| !d.is_error()),
        "{}",
        grammar::render::human("case.bpm", source, &checked.diagnostics, false)
    );
    checked.models.into_iter().next_back().expect("a model")
}

/// Every instruction on a line: number, operation, shape, batch, name; then the results.
fn listing(model: &Model) -> String {
    let mut text = String::new();
    for (v, instruction) in model.step.values() {
        let shape = match instruction.ty.shape {
            Shape::Scalar => "1".to_owned(),
            Shape::Vector(a) => format!("[{}]", model.axes.text(a)),
            Shape::Matrix { post, pre } => format!("[{},{}]", model.axes.text(post), model.axes.text(pre)),
        };
        let batch = if instruction.ty.batched { "b" } else { "" };
        let name = instruction.name.clone().map(|n| format!(" ; {n}")).unwrap_or_default();
        let op = format!("{:?}", instruction.op).replace("Value(", "(").replace("Shape::", "");
        text += &format!("%{} = {op} : {batch}{shape}{name}\n", v.0);
    }
    for (sink, v) in &model.step.results {
        text += &format!("{sink:?} = %{}\n", v.0);
    }
    text
}

const RETROACTIVE: &str = "
spec retroactive {
  axis I = ?, N = 200
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.01)
  learn eta = 0.1
  learn wm[N], bm ~ linear
  state y[N] = 0
  plastic H[N,N] = 0
  trace E[N,N] = 0
  modulator m = tanh(wm . y' + bm)
  y' = tanh(Wx @ u + bx + (W + alpha * H) @ y)
  H'[j,i] = clip(H + m * E, -1, 1)
  E'[j,i] = (1 - eta) * E + eta * y'[j] * y[i]
  out y'
}";

const RETROACTIVE_STEP: &str = "%0 = Load(Param(ParamId(0))) : [N,I] ; Wx
%1 = Load(Input(InputId(0))) : b[I] ; u
%2 = Contract((0), (1)) : b[N]
%3 = Load(Param(ParamId(1))) : [N] ; bx
%4 = Binary(Add, (2), (3)) : b[N]
%5 = Load(Param(ParamId(2))) : [N,N] ; W
%6 = Load(Param(ParamId(3))) : [N,N] ; alpha
%7 = Load(State(StateId(1))) : b[N,N] ; H
%8 = Binary(Mul, (6), (7)) : b[N,N]
%9 = Binary(Add, (5), (8)) : b[N,N]
%10 = Load(State(StateId(0))) : b[N] ; y
%11 = Contract((9), (10)) : b[N]
%12 = Binary(Add, (4), (11)) : b[N]
%13 = Unary(Tanh, (12)) : b[N] ; y'
%14 = Load(Param(ParamId(5))) : [N] ; wm
%15 = Binary(Mul, (14), (13)) : b[N]
%16 = SumAll((15)) : b1
%17 = Load(Param(ParamId(6))) : 1 ; bm
%18 = Binary(Add, (16), (17)) : b1
%19 = Unary(Tanh, (18)) : b1 ; m
%20 = Load(State(StateId(2))) : b[N,N] ; E
%21 = Splat((19), Matrix { post: Axis(1), pre: Axis(1) }) : b[N,N]
%22 = Binary(Mul, (21), (20)) : b[N,N]
%23 = Binary(Add, (7), (22)) : b[N,N]
%24 = Const(-1.0) : 1
%25 = Const(1.0) : 1
%26 = Clip { x: (23), low: (24), high: (25) } : b[N,N] ; H'
%27 = Load(Param(ParamId(4))) : 1 ; eta
%28 = Binary(Sub, (25), (27)) : 1
%29 = Splat((28), Matrix { post: Axis(1), pre: Axis(1) }) : [N,N]
%30 = Binary(Mul, (29), (20)) : b[N,N]
%31 = Splat((27), Vector(Axis(1))) : [N]
%32 = Binary(Mul, (31), (13)) : b[N]
%33 = Outer((32), (10)) : b[N,N]
%34 = Binary(Add, (30), (33)) : b[N,N] ; E'
State(StateId(0)) = %13
State(StateId(1)) = %26
State(StateId(2)) = %34
Output(OutputId(0)) = %13
";

#[test]
fn a_network_becomes_the_expected_instructions() {
    let model = model(RETROACTIVE);
    assert_eq!(listing(&model), RETROACTIVE_STEP);
    assert_eq!(model.modulators.len(), 1);
    assert_eq!(model.modulators[0].0, "m");
}

/// The operations of a step, in order, without the loads.
fn operations(body: &str) -> Vec<String> {
    let source = format!("spec s {{\n  axis N = 6, M = 3\n  in u[N], v[M], g\n{body}\n}}");
    let model = model(&source);
    let name = |op: &Op| format!("{op:?}").split(['(', ' ']).next().unwrap_or_default().to_owned();
    let kind = |op: &Op| match op {
        Op::Unary(f, _) => format!("{f:?}"),
        Op::Binary(f, ..) => format!("{f:?}"),
        other => name(other),
    };
    model.step.values().filter(|(_, i)| !matches!(i.op, Op::Load(_))).map(|(_, i)| kind(&i.op)).collect()
}

fn expect(body: &str, operations_of_it: &str) {
    let found = operations(body).join(" ");
    assert_eq!(found, operations_of_it, "{body}");
}

#[test]
fn synaptic_values_stay_vectors_until_they_meet() {
    expect("  out y = rowsum(tanh(v[j]) * u[i])", "Tanh Outer SumPre");
    expect("  out y = rowsum(2 * u[i] * v[j])", "Const Splat Mul Outer SumPre");
    expect("  out y = rowsum(v[j] + u[i])", "Rows Cols Add SumPre");
    expect("  learn W[M,N] ~ linear\n  out y = (W * v[j]) @ u", "Rows Mul Contract");
    expect("  learn W[M,N] ~ linear\n  out y = W^T @ v", "ContractT");
    expect("  learn W[M,N] ~ linear\n  out y = (W * u[i]) @ u", "Cols Mul Contract");
    expect("  n[j] = v[j] * 2\n  out y = n + v", "Const Splat Mul Add");
}

#[test]
fn missing_roles_of_a_matrix_state_are_filled() {
    let body = |rhs: &str| format!("  state S[M,N] = 0\n  S'[j,i] = {rhs}\n  out y = S @ u");
    expect(&body("v[j]"), "Rows Contract");
    expect(&body("u[i]"), "Cols Contract");
    expect(&body("g"), "Splat Contract");
}

#[test]
fn a_factored_matrix_is_a_sum_of_outer_products() {
    expect(
        "  learn W[M,N] ~ normal(0, 1) rank 2\n  out y = W @ u",
        "Slice Slice Outer Slice Slice Outer Add Contract",
    );
}

#[test]
fn a_held_state_selects_its_old_value() {
    let hold = "  state y[N] = 0\n  y' = tanh(u)\n  hold y when g\n  out y'";
    expect(hold, "Tanh Splat Select");
    let source = format!("spec s {{\n  axis N = 6\n  in u[N], g\n{hold}\n}}");
    let model = model(&source);
    let next = model.step.result(Sink::State(compiler::ir::StateId(0))).expect("a next value");
    let Op::Select(_, old, _) = model.step.at(next).op else { panic!("no selection") };
    assert!(matches!(model.step.at(old).op, Op::Load(Source::State(_))));
}

#[test]
fn builtins_become_few_operations() {
    expect("  out y = softmax(u)", "MaxAll StopGrad Splat Sub Exp SumAll Splat Div");
    expect("  out y = elu(u)", "Const Splat Const Splat Min Exp Sub Less Select");
    expect("  out y = clip_st(u, 0, 1)", "Const Const Clip Sub StopGrad Add");
    expect("  out y = u^3", "Const Splat Mul Mul");
    expect("  (a, b) = split(concat(v, v), 2)\n  out y = a, z = b", "Concat Slice Slice");
    expect("  out y = concat(u, v)", "Concat");
    expect("  out y = u / norm(u)", "Mul SumAll Const Add Sqrt Splat Div");
}

#[test]
fn instructions_without_the_batch_are_marked() {
    let model = model(RETROACTIVE);
    for (_, instruction) in model.step.values() {
        let batched = instruction.op.operands().iter().any(|o| model.step.ty(*o).batched);
        let loads = matches!(instruction.op, Op::Load(Source::Input(_) | Source::State(_)));
        assert_eq!(instruction.ty.batched, batched || loads);
    }
}

#[test]
fn declarations_become_the_typed_model() {
    let model = model(
        "spec s {
  axis D = ?, N = 4
  const half = 0.5
  /// What comes in.
  in u[D]
  in mod r
  in mask f
  in reset again
  noise xi[N] ~ uniform(-1, 1)
  learn W[N,D], b[N], w[N], c ~ linear
  learn rate < 0 = -5 / D, keep in (0, 1) = half gradscale 1 / N
  learn A[N,D] ~ normal(0, 0.1) rank 3
  fixed start[N] ~ normal(0, 1)
  state y[N] = start every 3 episodes
  plastic H[N,D] = learn ~ normal(0, 0.1) persist
  y' = tanh((W + A + H) @ u + b + xi)
  H'[j,i] = keep * H + rate * r * f * y'[j] * u[i]
  out y'
  out value = w . y' + c
}",
    );
    let param = |name: &str| &model.params[model.param(name).expect("a parameter").index()];
    assert!(matches!(param("W").init, Init::FanIn(_)));
    assert_eq!(param("W").init, param("b").init, "a bias has the fan-in of its weights");
    assert_eq!(param("w").init, param("c").init);
    assert_ne!(param("b").init, param("w").init);
    assert!(matches!(param("rate").constraint, Constraint::Below(ConstExpr::Number(0.0))));
    assert!(matches!(param("keep").constraint, Constraint::Interval(..)));
    assert_eq!(param("keep").init, Init::Constant(ConstExpr::Number(0.5)));
    assert_ne!(param("keep").gradscale, ConstExpr::Number(1.0));
    assert_eq!(param("A.post").dims.len(), 2);
    assert!(model.param("A").is_none());
    assert!(!param("start").learned);
    assert_eq!(model.axes.text(param("A.pre").dims[1]), "D");
    let state = |name: &str| &model.states[model.state(name).expect("a state").index()];
    assert_eq!(state("y").init, Init::Param(model.param("start").expect("start")));
    assert_eq!(state("y").reset, ResetPolicy::EveryEpisodes(3));
    assert_eq!(state("H").init, Init::Param(model.param("H.init").expect("H.init")));
    assert_eq!(state("H").reset, ResetPolicy::Persist);
    let roles: Vec<&Role> = model.inputs.iter().map(|i| &i.role).collect();
    assert!(matches!(
        roles[..],
        [
            Role::Signal,
            Role::Modulator,
            Role::Mask,
            Role::Reset,
            Role::Noise(Noise { law: Law::Drawn(Init::Uniform(..)), locked: false })
        ]
    ));
    assert_eq!(model.inputs[0].doc, ["What comes in."]);
    assert_eq!(model.outputs.len(), 2);
}

#[test]
fn text_order_has_no_meaning() {
    let turned: Vec<&str> = RETROACTIVE.trim().lines().collect();
    let middle: Vec<&str> = turned[1..turned.len() - 1].iter().rev().copied().collect();
    let source = format!("spec retroactive {{\n{}\n}}", middle.join("\n"));
    let (a, b) = (model(RETROACTIVE), model(&source));
    assert_eq!(a.step.body.len(), b.step.body.len());
    assert_eq!(a.params.len(), b.params.len());
}
