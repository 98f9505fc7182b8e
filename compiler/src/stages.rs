//! The stages of the compiler as text: what `bpmc compile --emit` prints.

use crate::back::BackError;
use crate::form::{self, Prefer};
use crate::ir::{Shape, SizeError, Sizes};
use crate::loops::plan::{self, Plan, Use, Write};
use crate::loops::{LowerOptions, Program, lower};
use crate::model::{ConstExpr, Constraint, Init, Law, Model, Param, ResetPolicy, Role, State};
use crate::{autodiff, back, check, ir, loops, passes};
use std::collections::BTreeMap;

/// A stage that can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The syntax tree.
    Ast,
    /// The tables of the model.
    Model,
    /// One time step, as the interpreter runs it.
    Step,
    /// The same step, as it is differentiated for the kernels.
    Simplified,
    /// Its adjoint.
    Adjoint,
    /// The adjoint of what depends on parameters alone.
    Prologue,
    /// The step with tangents.
    Tangent,
    /// The loops.
    Loops,
    /// What training costs.
    Plan,
    /// What Cranelift gets.
    Clif,
    /// The instructions of the x86-64 back end.
    Asm,
    /// The source of the CUDA back end.
    Cuda,
    /// A PyTorch module.
    Torch,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Stage; 13] = [
        Stage::Ast,
        Stage::Model,
        Stage::Step,
        Stage::Simplified,
        Stage::Adjoint,
        Stage::Prologue,
        Stage::Tangent,
        Stage::Loops,
        Stage::Plan,
        Stage::Clif,
        Stage::Asm,
        Stage::Cuda,
        Stage::Torch,
    ];

    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Ast => "ast",
            Stage::Model => "model",
            Stage::Step => "step",
            Stage::Simplified => "simplified",
            Stage::Adjoint => "adjoint",
            Stage::Prologue => "prologue",
            Stage::Tangent => "tangent",
            Stage::Loops => "loops",
            Stage::Plan => "plan",
            Stage::Clif => "clif",
            Stage::Asm => "asm",
            Stage::Cuda => "cuda",
            Stage::Torch => "torch",
        }
    }

    /// The ending of a file that holds it.
    pub fn ending(self) -> &'static str {
        match self {
            Stage::Cuda => "cu",
            Stage::Torch => "py",
            _ => "txt",
        }
    }

    /// Whether it depends on the sizes of axes.
    pub fn needs_sizes(self) -> bool {
        matches!(self, Stage::Loops | Stage::Plan | Stage::Clif | Stage::Asm | Stage::Cuda)
    }
}

/// Why a stage cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Axes are open, or do not exist.
    #[error(transparent)]
    Sizes(#[from] SizeError),
    /// A part of a vector lies outside of it.
    #[error(transparent)]
    Outside(#[from] ir::Outside),
    /// No program can address this.
    #[error(
        "`{what}` of one batch row would have {elements} numbers, more than can be addressed; make its axes smaller"
    )]
    TooLarge {
        /// The tensor or region.
        what: String,
        /// Its size.
        elements: u128,
    },
    /// The code generator failed.
    #[error(transparent)]
    Jit(#[from] back::BackError),
}

/// Elements that a region can have: offsets are displacements of 31 bits.
const MOST: u128 = (1 << 29) - 1;

/// The sizes of a model, if a program with them can be addressed.
///
/// # Errors
/// [`StageError`] if axes are open or unknown, or a tensor is too large.
pub fn bind(model: &Model, bound: &BTreeMap<String, usize>) -> Result<Sizes, StageError> {
    let sizes = Sizes::bind(&model.axes, bound)?;
    ir::check_bounds(&model.step, &sizes)?;
    let named = model.params.iter().map(|p| (&p.name, p.shape));
    let named = named.chain(model.states.iter().map(|s| (&s.name, s.shape)));
    let named = named.chain(model.inputs.iter().map(|i| (&i.name, i.shape)));
    let named = named.chain(model.outputs.iter().map(|o| (&o.name, o.shape)));
    for (name, shape) in named {
        let elements = sizes.dims(shape).iter().map(|n| *n as u128).product();
        if elements > MOST {
            return Err(StageError::TooLarge { what: name.clone(), elements });
        }
    }
    for instruction in &model.step.body {
        let elements = sizes.dims(instruction.ty.shape).iter().map(|n| *n as u128).product();
        if elements > MOST {
            let what = instruction.name.clone().unwrap_or_else(|| "a value".to_owned());
            return Err(StageError::TooLarge { what, elements });
        }
    }
    Ok(sizes)
}

/// The loops of a model.
///
/// # Errors
/// [`StageError::TooLarge`] if a region cannot be addressed.
pub fn program(model: &Model, sizes: &Sizes) -> Result<Program, StageError> {
    lowered(&passes::optimise(model), sizes, LowerOptions { input_bars: true })
}

/// The loops of a model in its simplified form.
fn lowered(model: &Model, sizes: &Sizes, options: LowerOptions) -> Result<Program, StageError> {
    let program = lower(model, sizes, &autodiff::step(model), options);
    let regions = [
        ("parameters", program.params_len),
        ("gradients", program.grads_len),
        ("matrix states", program.matrices_len.max(program.carry_len)),
        ("logs of events", program.log_len.max(program.log_bar_len)),
        ("frame", program.frame_len.max(program.adjoint_len)),
        ("scratch", program.scratch_len),
    ];
    match regions.into_iter().find(|(_, n)| *n as u128 > MOST) {
        Some((what, n)) => Err(StageError::TooLarge { what: what.to_owned(), elements: n as u128 }),
        None => Ok(program),
    }
}

/// A model, where it comes from, and how it is going to be used.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The name of the file.
    pub file: &'a str,
    /// The text of the file.
    pub source: &'a str,
    /// The model.
    pub model: &'a Model,
    /// Sizes of axes, by name.
    pub bound: &'a BTreeMap<String, usize>,
    /// Batch, steps, threads.
    pub usage: &'a Use,
}

/// A stage of a model as text.
///
/// # Errors
/// [`StageError`] for stages that need sizes which are missing or too large.
pub fn emit(stage: Stage, subject: &Subject<'_>) -> Result<String, StageError> {
    let Subject { source, model, bound, .. } = *subject;
    let with_sizes = || -> Result<(Sizes, Program), StageError> {
        let sizes = bind(model, bound)?;
        let program = program(model, &sizes)?;
        Ok((sizes, program))
    };
    Ok(match stage {
        Stage::Ast => ast(source, &model.name),
        Stage::Model => tables(model),
        Stage::Step => ir::print(&model.step, model, "step"),
        Stage::Simplified => {
            let model = passes::optimise(model);
            ir::print(&model.step, &model, "step")
        }
        Stage::Adjoint => {
            let model = passes::optimise(model);
            ir::print(&autodiff::step(&model), &model, "adjoint")
        }
        Stage::Prologue => {
            let model = passes::optimise(model);
            ir::print(&autodiff::prologue(&model), &model, "prologue")
        }
        Stage::Tangent => ir::print(&autodiff::forward(model), model, "tangent"),
        Stage::Loops => loops::print(&with_sizes()?.1),
        Stage::Plan => planned(subject)?.text(),
        Stage::Clif => back::cranelift::print(&with_sizes()?.1).map_err(BackError::from)?,
        Stage::Asm => back::x64::print(&with_sizes()?.1).map_err(BackError::from)?,
        Stage::Cuda => cuda(subject)?.text,
        Stage::Torch => back::torch::emit(model, bound, subject.file),
    })
}

/// A model as the back end for CUDA takes it.
fn on_cuda<T>(
    subject: &Subject<'_>,
    options: LowerOptions,
    work: impl FnOnce(&Program, &back::cuda::Spec<'_>) -> T,
) -> Result<T, StageError> {
    let Subject { file, source, model, bound, .. } = *subject;
    let sizes = bind(model, bound)?;
    let model = passes::optimise(model);
    let program = lowered(&model, &sizes, options)?;
    let adjoint = &autodiff::step(&model);
    let spec = back::cuda::Spec { file, source, name: &model.name, step: &model.step, adjoint };
    Ok(work(&program, &spec))
}

/// A model as CUDA C.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn cuda(subject: &Subject<'_>) -> Result<back::cuda::Source, StageError> {
    on_cuda(subject, LowerOptions { input_bars: true }, back::cuda::emit)
}

/// A model as CUDA C for the steps of a batch on a device, with the mapping that suits both.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn cuda_for(subject: &Subject<'_>, grid: back::cuda::Grid) -> Result<back::cuda::Source, StageError> {
    on_cuda(subject, LowerOptions { input_bars: true }, |program, spec| {
        back::cuda::emit_for(program, spec, grid)
    })
}

/// A model as CUDA C that takes whole sequences, with its mapping forward and backward; or why it cannot.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn cuda_sequences(
    subject: &Subject<'_>,
    device: &back::cuda::Device,
) -> Result<Result<(back::cuda::Source, [back::cuda::Mapping; 2]), back::cuda::Refusal>, StageError> {
    on_cuda(subject, LowerOptions { input_bars: true }, |program, spec| {
        let [forward, backward] = back::cuda::map_sequences(program, spec, device);
        let mapping = [forward?, backward?];
        Ok((back::cuda::emit_sequences(program, spec, &mapping), mapping))
    })
}

/// A model as CUDA C for a batch on a device, direction by direction with the kernels that are wished for, and the
/// choice; or why they cannot be had.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn cuda_chosen(
    subject: &Subject<'_>,
    (grid, device): (back::cuda::Grid, &back::cuda::Device),
    wish: back::cuda::Wish,
) -> Result<Result<(back::cuda::Source, back::cuda::Route), back::cuda::Refusal>, StageError> {
    on_cuda(subject, LowerOptions { input_bars: true }, |program, spec| {
        let candidates = back::cuda::candidates(program, spec, grid, device);
        let route = candidates.choose(wish)?;
        let mapping = candidates.taken(&route);
        Ok((back::cuda::emit_mixed(program, spec, mapping, grid), route))
    })
}

/// What a device can do with a batch of a model that is trained: how steps are mapped to it, and whole sequences forward
/// and backward, or why not. Training needs no cotangents of inputs.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn cuda_candidates(
    subject: &Subject<'_>,
    grid: back::cuda::Grid,
    device: &back::cuda::Device,
) -> Result<back::cuda::Candidates, StageError> {
    on_cuda(subject, LowerOptions { input_bars: false }, |program, spec| {
        back::cuda::candidates(program, spec, grid, device)
    })
}

/// The cost of training a model with its matrices.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn planned(subject: &Subject<'_>) -> Result<Plan, StageError> {
    let plan = planned_for(subject, subject.model)?;
    Ok(Plan { writes: writes(subject.model), ..plan })
}

/// The cost of training a model in the form that is preferred.
///
/// # Errors
/// [`StageError`] if sizes are missing or too large.
pub fn planned_as(subject: &Subject<'_>, prefer: Prefer) -> Result<Plan, StageError> {
    let model = subject.model;
    let sizes = bind(model, subject.bound)?;
    let (kept, form) = form::choose(model, subject.bound, subject.usage.steps, prefer)?;
    let plan = planned_for(subject, kept.as_ref().unwrap_or(model))?;
    let (matrix_bytes, dense_bytes) = plan::dense(model, &sizes, subject.usage);
    let form = Some(form).filter(|f| !f.legal.is_empty() || !f.refused.is_empty());
    Ok(Plan { writes: writes(model), form, matrix_bytes, dense_bytes, ..plan })
}

fn writes(model: &Model) -> Vec<Write> {
    let remarks = check::remarks(model).into_iter().filter(|d| d.code == check::codes::WRITE_CLASS);
    remarks.map(|d| Write { class: d.message, means: d.notes.join("; ") }).collect()
}

fn planned_for(subject: &Subject<'_>, model: &Model) -> Result<Plan, StageError> {
    let sizes = bind(model, subject.bound)?;
    let simplified = passes::optimise(model);
    // Training needs no cotangents of inputs.
    let program = lowered(&simplified, &sizes, LowerOptions { input_bars: false })?;
    let prologue = &autodiff::prologue(&simplified);
    let made = plan::Subject { model: &simplified, sizes: &sizes, program: &program, prologue };
    Ok(plan::plan(&made, subject.usage))
}

/// The syntax tree of one spec, as the compiler's own notation of data.
fn ast(source: &str, name: &str) -> String {
    let parsed = grammar::parse(source);
    let mut text = String::new();
    for item in &parsed.file.items {
        if let grammar::ast::Item::Spec(spec) = item
            && spec.name.name == name
        {
            text.push_str(&format!("{spec:#?}\n"));
        }
    }
    text
}

/// The tables of a model.
fn tables(model: &Model) -> String {
    let shape = |s: Shape| ir::shape_text(s, &model.axes);
    let mut text = format!("model {}\n", model.name);
    let mut section = |title: &str, lines: Vec<String>| {
        text.push_str(&format!("{title}\n"));
        lines.iter().for_each(|l| text.push_str(&format!("  {l}\n")));
    };
    let params =
        model.params.iter().map(|p| format!("{}{} {}", p.name, shape(p.shape), param_text(p, model)));
    let inputs =
        model.inputs.iter().map(|i| format!("{}{} {}", i.name, shape(i.shape), role_text(&i.role, model)));
    let states =
        model.states.iter().map(|s| format!("{}{} {}", s.name, shape(s.shape), state_text(s, model)));
    let outputs = model.outputs.iter().map(|o| format!("{}{}", o.name, shape(o.shape)));
    let modulators = model
        .modulators
        .iter()
        .map(|(name, v, _)| format!("{name} = %{}: {}", v.0, ir::type_text(model.step.ty(*v), &model.axes)));
    section("axes", axes_text(model));
    section("parameters", params.collect());
    section("inputs", inputs.collect());
    section("states", states.collect());
    section("outputs", outputs.collect());
    section("modulators", modulators.collect());
    text
}

fn axes_text(model: &Model) -> Vec<String> {
    let size = |n: Option<usize>| n.map_or("?".to_owned(), |n| n.to_string());
    let mut lines: Vec<String> =
        model.axes.named.iter().map(|a| format!("{} = {}", a.name, size(a.size))).collect();
    let mut plain = model.axes.clone();
    plain.aliases.clear();
    lines.extend(model.axes.aliases.iter().map(|(name, axis)| format!("{name} = {}", plain.text(*axis))));
    lines
}

/// What a parameter is: `learn in (0, 1) ~ uniform(0.001, 0.999)`.
pub(crate) fn param_text(p: &Param, model: &Model) -> String {
    let learned = if p.learned { "learn" } else { "fixed" };
    let scale = match &p.gradscale {
        ConstExpr::Number(x) if *x == 1.0 => String::new(),
        e => format!(" gradscale {}", e.text(&model.axes)),
    };
    format!("{learned}{}{}{scale}", constraint_text(&p.constraint, model), init_text(&p.init, model))
}

/// What a state is: `plastic = 0 persist`.
pub(crate) fn state_text(s: &State, model: &Model) -> String {
    let reset = match s.reset {
        ResetPolicy::EveryEpisodes(1) => String::new(),
        ResetPolicy::EveryEpisodes(k) => format!(" every {k} episodes"),
        ResetPolicy::Persist => " persist".to_owned(),
    };
    let form = match s.prefer {
        Prefer::Auto => "",
        Prefer::Dense => " dense",
        Prefer::Events => " events",
    };
    format!("{}{}{reset}{form}", format!("{:?}", s.kind).to_lowercase(), init_text(&s.init, model))
}

/// A range as the spec writes it.
fn constraint_text(c: &Constraint, model: &Model) -> String {
    let text = |e: &ConstExpr| e.text(&model.axes);
    match c {
        Constraint::Free => String::new(),
        Constraint::Interval(a, b) => format!(" in ({}, {})", text(a), text(b)),
        Constraint::Above(a) => format!(" > {}", text(a)),
        Constraint::Below(b) => format!(" < {}", text(b)),
    }
}

/// An initial value as the spec writes it.
fn init_text(init: &Init, model: &Model) -> String {
    let text = |e: &ConstExpr| e.text(&model.axes);
    match init {
        Init::Constant(c) => format!(" = {}", text(c)),
        Init::Uniform(a, b) => format!(" ~ uniform({}, {})", text(a), text(b)),
        Init::Normal(a, b) => format!(" ~ normal({}, {})", text(a), text(b)),
        Init::FanIn(axis) => format!(" ~ linear({})", model.axes.text(*axis)),
        Init::Orthogonal(gain) => format!(" ~ orthogonal({})", text(gain)),
        Init::Param(p) => format!(" = {}", model.params[p.index()].name),
    }
}

/// The role of an input as the spec writes it.
pub(crate) fn role_text(role: &Role, model: &Model) -> String {
    match role {
        Role::Signal => "in".to_owned(),
        Role::Modulator => "in mod".to_owned(),
        Role::Target => "in target".to_owned(),
        Role::Mask => "in mask".to_owned(),
        Role::Reset => "in reset".to_owned(),
        Role::Noise(noise) => {
            let law = match &noise.law {
                Law::Drawn(init) => init_text(init, model),
                Law::Dropout(p) => format!(" ~ dropout({})", p.text(&model.axes)),
            };
            format!("noise{law}{}", if noise.locked { " locked" } else { "" })
        }
    }
}
