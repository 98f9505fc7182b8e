//! What belongs to which link of a chain.

mod support;

use compiler::ir::{InputId, Op, OutputId};
use compiler::model::{Model, Role};
use compiler::passes::chain::{Given, Link, chain};

fn links(text: &str) -> (Model, Vec<Link>) {
    let model = support::model_of(text);
    let links = chain(&model);
    (Model::clone(&model), links)
}

fn names<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    all.map(String::as_str).collect()
}

fn states(link: &Link) -> Vec<&str> {
    names(link.model.states.iter().map(|s| &s.name))
}

fn params(link: &Link) -> Vec<&str> {
    names(link.model.params.iter().map(|p| &p.name))
}

const TWO: &str = "spec two {
  axis N = ?
  in u[N], v[N]
  noise d[N] ~ dropout(0.5)
  learn A[N,N], B[N,N], C[N,N], D[N,N], s[N] ~ uniform(-1, 1)
  state x[N] = 0, a[N] = 0, b[N] = 0, old[N] = 0
  plastic H[N,N] = 0
  x' = 0.5 * x + u
  a' = tanh(s * x' + A @ a)
  old' = a
  b' = tanh(C @ (d * a') + (B + H) @ b + s * v)
  H'[j,i] = clip(H + b'[j] * b[i], -1, 1)
  out y[N] = D @ b'
  out z[N] = old + u
  penalty sum(a' * a') + sum(b' * b')
}";

#[test]
fn a_link_has_what_its_loop_needs() {
    let (_, links) = links(TWO);
    assert_eq!(links.len(), 2);
    // A trace of the input and a delay have no matrix: they cost no link of their own.
    assert_eq!(states(&links[0]), ["x", "a", "old"]);
    assert_eq!(states(&links[1]), ["b", "H"]);
    // The product with what the first link gives, and the noise on it, need nothing of the first loop.
    let mut own = params(&links[1]);
    own.sort_unstable();
    assert_eq!(own, ["B", "C", "D", "s"]);
    let mut own = params(&links[0]);
    own.sort_unstable();
    assert_eq!(own, ["A", "s"]);
    assert_eq!(links[0].inputs, [Given::Input(InputId(0))]);
    let crossing = OutputId(links[0].outputs.iter().position(Option::is_none).expect("one") as u32);
    let mut given = links[1].inputs.clone();
    given.sort_by_key(|g| format!("{g:?}"));
    assert_eq!(given, [Given::Input(InputId(1)), Given::Input(InputId(2)), Given::Link(0, crossing)]);
    assert_eq!(links[0].outputs.iter().flatten().collect::<Vec<_>>(), [&OutputId(1)]);
    assert_eq!(links[1].outputs, [Some(OutputId(0))]);
}

#[test]
fn feedback_and_matrices_between_keep_a_step_whole() {
    let feedback = TWO.replace("tanh(s * x' + A @ a)", "tanh(s * x' + A @ a + b)");
    assert_eq!(links(&feedback).1.len(), 0);
    let matrix = TWO.replace("state x[N] = 0,", "plastic M[N,N] = 0\n  state x[N] = 0,");
    let matrix = matrix
        .replace("  old' = a\n", "  old' = a\n  M' = 0.9 * M + a'[j] * a[i]\n")
        .replace("M' =", "M'[j,i] =");
    let matrix = matrix.replace("(B + H) @ b", "(B + H + M) @ b");
    assert_eq!(links(&matrix).1.len(), 0);
}

#[test]
fn an_input_of_two_links_is_handed_on() {
    let (model, links) = links(&TWO.replace("s * v)", "s * v + d + u)"));
    assert_eq!(links.len(), 2);
    let u = links[1].inputs.iter().position(|g| {
        let Given::Link(l, o) = g else { return false };
        let v = links[*l].model.step.result(compiler::ir::Sink::Output(*o)).expect("an output");
        matches!(links[*l].model.step.at(v).op, Op::Load(_))
    });
    let u = u.expect("the input is handed on");
    assert_eq!(links[1].model.inputs[u].role, Role::Signal);
    assert_eq!(model.inputs[0].name, "u");
}

#[test]
fn every_part_of_every_spec_is_in_one_link() {
    let mut count = 0;
    for (name, model) in support::all_specs() {
        let links = chain(&model);
        if links.is_empty() {
            continue;
        }
        count += 1;
        let mut states: Vec<_> = links.iter().flat_map(|l| l.states.clone()).collect();
        states.sort_unstable();
        assert!(states.iter().enumerate().all(|(k, s)| s.index() == k), "{name}: {states:?}");
        assert_eq!(states.len(), model.states.len(), "{name}");
        let mut outputs: Vec<_> = links.iter().flat_map(|l| l.outputs.iter().flatten().copied()).collect();
        outputs.sort_unstable();
        assert_eq!(outputs.len(), model.outputs.len(), "{name}");
        for (k, _) in model.inputs.iter().enumerate() {
            let given = Given::Input(InputId(k as u32));
            let users = links.iter().filter(|l| l.inputs.contains(&given)).count();
            assert_eq!(users, 1, "{name}: input {k}");
        }
        for link in &links {
            compiler::ir::verify(&link.model.step).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
    }
    assert!(count >= 6, "{count}");
}
