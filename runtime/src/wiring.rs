//! Connects a task to a model: which axes it binds, which input it feeds, which outputs it reads.

use crate::Error;
use crate::encoder::Encoder;
use crate::learner::Learner;
use crate::params::draw;
use crate::rng::{Address, Domain, Purpose, Stream};
use crate::task::{Goal, Task};
use compiler::ir::{InputId, OutputId, Shape, Sizes};
use compiler::model::{Input, Law, Model, Noise, Role};
use grammar::diag::did_you_mean;
use std::collections::BTreeMap;

/// The connections.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// What the task shows goes here.
    pub input: InputId,
    /// The previous reward goes here, if the spec has `in mod reward`.
    pub reward: Option<InputId>,
    /// Labels go here, if the task shows any.
    pub label: Option<InputId>,
    /// Noise inputs and how they are drawn.
    pub noise: Vec<(InputId, Noise, Vec<usize>)>,
    /// Action logits, or the vector that is compared with the target.
    pub output: OutputId,
    /// The value of the state, for actor-critic learners.
    pub value: Option<OutputId>,
}

/// How many numbers a network sees at a step: what the task shows, or what an embedding or an encoder makes
/// of it.
pub fn seen(task: &dyn Task, learner: &Learner, encoder: &Encoder) -> usize {
    match (learner, encoder.features()) {
        (Learner::NextWord(n), _) => n.embedding,
        (_, Some(features)) => features,
        (_, None) => task.inputs(),
    }
}

/// Sizes of all axes: those of the task, then those of the recipe, then those of the spec. `seen` binds `I`.
///
/// # Errors
/// If an axis is bound twice in different ways, is unknown, or is bound by nobody.
pub fn bind_sizes(
    model: &Model,
    task: &dyn Task,
    seen: usize,
    given: &BTreeMap<String, usize>,
) -> Result<Sizes, Error> {
    let mut bound = given.clone();
    let others = task.axes().into_iter().filter(|(name, _)| *name != "I");
    // A task whose inputs have no axis of their own is not asked for one.
    let has_own = task.axes().iter().any(|(name, _)| *name == "I") || task.text().is_some();
    for (name, size) in others.chain(has_own.then_some(("I", seen))) {
        let Some(axis) = model.axes.named.iter().find(|a| a.name == name) else { continue };
        if let Some(other) = given.get(name).filter(|n| **n != size) {
            return Err(Error::usage(format!(
                "the task binds axis `{name}` to {size}, the recipe to {other}"
            ))
            .help(format!("leave `sizes.{name}` out")));
        }
        if let Some(fixed) = axis.size.filter(|n| *n != size) {
            return Err(Error::input(format!(
                "the task binds axis `{name}` to {size}, but spec `{}` fixes it at {fixed}",
                model.name
            ))
            .help(format!("write `axis {name} = ?` in the spec")));
        }
        bound.insert(name.to_string(), size);
    }
    Sizes::bind(&model.axes, &bound).map_err(|e| {
        let error = Error::from(e.clone());
        match e {
            compiler::ir::SizeError::Unbound(names) => error.help(format!(
                "in a recipe: `sizes.{0} = 100`; on the command line: --set sizes.{0}=100",
                names[0]
            )),
            _ => error,
        }
    })
}

impl Wiring {
    /// Finds the connections.
    ///
    /// # Errors
    /// If the model lacks an input or output that the task needs, or one has the wrong size.
    pub fn new(model: &Model, sizes: &Sizes, task: &dyn Task, seen: usize) -> Result<Self, Error> {
        let mut wiring = Wiring {
            input: find_input(model, sizes, seen)?,
            reward: None,
            label: None,
            noise: vec![],
            output: OutputId(0),
            value: None,
        };
        wiring.other_inputs(model, sizes, task)?;
        match task.goal() {
            Goal::Act(n) => {
                wiring.output = find_output(model, sizes, "policy", Some(n), "one logit per action")?;
                wiring.value = Some(find_output(model, sizes, "value", None, "the value of the state")?);
            }
            Goal::Match(n) => {
                wiring.output = find_output(model, sizes, only(model, "y"), Some(n), "one number per unit")?;
            }
            Goal::Classify(n) => {
                let what = "one logit per class";
                wiring.output = find_output(model, sizes, only(model, "logits"), Some(n), what)?;
            }
            Goal::Continue => wiring.output = features(model)?,
        }
        Ok(wiring)
    }

    fn other_inputs(&mut self, model: &Model, sizes: &Sizes, task: &dyn Task) -> Result<(), Error> {
        for (k, input) in model.inputs.iter().enumerate() {
            let id = InputId(k as u32);
            let acts = matches!(task.goal(), Goal::Act(_));
            match &input.role {
                _ if id == self.input => {}
                Role::Noise(noise) => self.noise.push((id, noise.clone(), sizes.dims(input.shape))),
                Role::Reset => {}
                Role::Target if task.labels() > 0 && self.label.is_none() => {
                    self.label = Some(label(sizes, input, id, task.labels())?);
                }
                Role::Modulator if input.name == "reward" && input.shape == Shape::Scalar && acts => {
                    self.reward = Some(id);
                }
                _ => {
                    let message = format!("the task has nothing to put into input `{}`", input.name);
                    let help = "a task feeds one signal (`in u[I]`), noise, and for tasks with actions the \
                                previous reward (`in mod reward`)";
                    return Err(Error::input(message).help(help));
                }
            }
        }
        if task.labels() > 0 && self.label.is_none() {
            let message = format!("the task shows labels, but spec `{}` has no input for them", model.name);
            return Err(Error::input(message).help("declare `axis O = ?` and `in target label[O]`"));
        }
        Ok(())
    }

    /// Noise for a step: input by input.
    pub fn draw_noise(
        &self,
        sizes: &Sizes,
        address: Address,
        step: usize,
        put: impl FnMut(InputId, Vec<f64>),
    ) {
        draw_noise(&self.noise, sizes, address, step, put);
    }
}

/// A noise input: how it is drawn, and its axes.
pub type NoiseInput = (InputId, Noise, Vec<usize>);

/// The noise inputs of a model.
pub fn noise_inputs(model: &Model, sizes: &Sizes) -> Vec<NoiseInput> {
    let numbered = model.inputs.iter().enumerate();
    let noise = numbered.filter_map(|(k, input)| match &input.role {
        Role::Noise(noise) => Some((InputId(k as u32), noise.clone(), sizes.dims(input.shape))),
        _ => None,
    });
    noise.collect()
}

/// Noise for a step of these inputs, in their order.
pub fn draw_noise(
    inputs: &[NoiseInput],
    sizes: &Sizes,
    address: Address,
    step: usize,
    mut put: impl FnMut(InputId, Vec<f64>),
) {
    if inputs.is_empty() {
        return;
    }
    let mut fresh = address.stream(Purpose::Noise, step as u32);
    let mut locked = address.stream(Purpose::Locked, 0);
    for (id, noise, dims) in inputs {
        let stream = if noise.locked { &mut locked } else { &mut fresh };
        put(
            *id,
            match &noise.law {
                Law::Drawn(init) => draw(init, dims, sizes, stream),
                Law::Dropout(p) => dropout(p.eval(sizes), dims, address.domain, stream),
            },
        );
    }
}

/// Zeros with probability `p`, else 1/(1-p); ones in evaluation.
fn dropout(p: f64, dims: &[usize], domain: Domain, stream: &mut Stream) -> Vec<f64> {
    let count = dims.iter().product();
    match domain {
        Domain::Eval => vec![1.0; count],
        Domain::Train => (0..count).map(|_| if stream.chance(p) { 0.0 } else { 1.0 / (1.0 - p) }).collect(),
    }
}

/// The output from which the next word is predicted: `y`, or the only vector.
fn features(model: &Model) -> Result<OutputId, Error> {
    let vectors = model.outputs.iter().enumerate().filter(|(_, o)| matches!(o.shape, Shape::Vector(_)));
    let vectors: Vec<(usize, &str)> = vectors.map(|(k, o)| (k, o.name.as_str())).collect();
    let found = vectors.iter().find(|(_, name)| *name == "y").or(match vectors.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    found.map(|(k, _)| OutputId(*k as u32)).ok_or_else(|| {
        let names: Vec<&str> = model.outputs.iter().map(|o| o.name.as_str()).collect();
        Error::input(format!(
            "spec `{}` has no output `y`: the features from which the next word is predicted",
            model.name
        ))
        .help(format!("add `out y[N] = …`; the spec's outputs: {}", names.join(", ")))
    })
}

/// The name of the only output, or else this one.
fn only<'a>(model: &'a Model, otherwise: &'a str) -> &'a str {
    match model.outputs.as_slice() {
        [only] => only.name.as_str(),
        _ => otherwise,
    }
}

/// An input for labels of so many classes.
fn label(sizes: &Sizes, input: &Input, id: InputId, classes: usize) -> Result<InputId, Error> {
    let dims = sizes.dims(input.shape);
    if dims == [classes] {
        return Ok(id);
    }
    let (name, found) = (&input.name, crate::tensors::brackets(&dims));
    let message =
        format!("input `{name}` has shape {found}, but the labels of the task have {classes} classes");
    Err(Error::input(message).help("declare `axis O = ?` and `in target label[O]`; the task binds O"))
}

fn find_input(model: &Model, sizes: &Sizes, wanted: usize) -> Result<InputId, Error> {
    let signals: Vec<usize> =
        (0..model.inputs.len()).filter(|&k| model.inputs[k].role == Role::Signal).collect();
    let named = signals.iter().find(|&&k| model.inputs[k].name == "u");
    let index = match (named, signals.as_slice()) {
        (Some(k), _) => *k,
        (None, [only]) => *only,
        _ => {
            let message =
                format!("spec `{}` has no input `u` for the {wanted} inputs of the task", model.name);
            return Err(Error::input(message).help("declare `axis I = ?` and `in u[I]`"));
        }
    };
    let found = sizes.count(model.inputs[index].shape);
    if found != wanted {
        let message =
            format!("input `{}` has {found} elements, but the task shows {wanted}", model.inputs[index].name);
        return Err(Error::input(message).help("declare `axis I = ?` and `in u[I]`; the task binds I"));
    }
    Ok(InputId(index as u32))
}

fn find_output(
    model: &Model,
    sizes: &Sizes,
    name: &str,
    size: Option<usize>,
    what: &str,
) -> Result<OutputId, Error> {
    let Some(id) = model.output(name) else {
        let names: Vec<&str> = model.outputs.iter().map(|o| o.name.as_str()).collect();
        let shape = if size.is_some() { "[A]" } else { "" };
        let error = Error::input(format!("the task needs an output `{name}` ({what})"));
        return Err(match did_you_mean(name, names.iter().copied()) {
            Some(c) => error.help(format!("did you mean to call output `{c}` so?")),
            None => {
                error.help(format!("add `out {name}{shape} = …`; the spec's outputs: {}", names.join(", ")))
            }
        });
    };
    let shape = model.outputs[id.index()].shape;
    let fits = match size {
        Some(n) => matches!(shape, Shape::Vector(_)) && sizes.count(shape) == n,
        None => shape == Shape::Scalar,
    };
    if fits {
        return Ok(id);
    }
    let (found, wanted) =
        (crate::tensors::brackets(&sizes.dims(shape)), size.map(|n| vec![n]).unwrap_or_default());
    let wanted = crate::tensors::brackets(&wanted);
    Err(Error::input(format!("output `{name}` has shape {found}, but the task needs {wanted} ({what})")))
}
