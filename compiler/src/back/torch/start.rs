//! Where things start: the constructor, the initial values of parameters, the states of a new episode, noise.

use super::names::Words;
use super::py::Py;
use super::step::is_one;
use super::values::tuple;
use crate::ir::{Axis, ParamId, Shape};
use crate::model::{ConstExpr, Constraint, Init, Law, Model, Noise, Param, ResetPolicy, Role, State};
use std::collections::{BTreeMap, BTreeSet};

/// Writes what happens before a step.
pub(super) struct Start<'m> {
    pub(super) model: &'m Model,
    pub(super) words: &'m Words,
    /// Sizes that replace those of the spec.
    pub(super) bound: &'m BTreeMap<String, usize>,
}

/// Lines of a method, indented.
fn method(head: &str, lines: &[String]) -> String {
    let body: String =
        lines.iter().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("        {l}\n") }).collect();
    format!("    {head}\n{body}")
}

impl Start<'_> {
    fn number(&self, x: &ConstExpr) -> Py {
        self.words.number(&self.model.axes, x, "self.")
    }

    fn sizes(&self, dims: &[Axis], place: &str) -> Vec<Py> {
        dims.iter().map(|a| self.words.size(&self.model.axes, *a, place)).collect()
    }

    /// What an axis is called and how large it is, unless that is open; open ones come first.
    pub(super) fn arguments(&self) -> Vec<(String, Option<usize>)> {
        let named = self.model.axes.named.iter().zip(&self.words.axes);
        let all = named.map(|(a, word)| (word.clone(), self.bound.get(&a.name).copied().or(a.size)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(_, size)| size.is_some());
        all
    }

    /// `__init__`
    pub(super) fn constructor(&self) -> String {
        let sizes: Vec<String> = self
            .arguments()
            .into_iter()
            .map(|(name, size)| match size {
                Some(n) => format!("{name}: int = {n}"),
                None => format!("{name}: int"),
            })
            .collect();
        let head = format!("def __init__(self, {}, *, device=None, dtype=None):", sizes.join(", "));
        let head = match 4 + head.len() <= 100 {
            true => head,
            false => {
                let lines: String =
                    sizes.iter().chain([&"*".to_owned()]).map(|s| format!("        {s},\n")).collect();
                format!(
                    "def __init__(\n        self,\n{lines}        device=None,\n        dtype=None,\n    ):"
                )
            }
        };
        let head = if sizes.is_empty() {
            "def __init__(self, *, device=None, dtype=None):".to_owned()
        } else {
            head
        };
        let mut lines =
            vec!["super().__init__()".to_owned(), "kind = {\"device\": device, \"dtype\": dtype}".to_owned()];
        let words: Vec<String> = self.words.axes.clone();
        for chunk in words.chunks(6) {
            let left: Vec<String> = chunk.iter().map(|w| format!("self.{w}")).collect();
            lines.push(format!("{} = {}", left.join(", "), chunk.join(", ")));
        }
        let mut doc: &[String] = &[];
        let mut modules = BTreeSet::new();
        for (k, param) in self.model.params.iter().enumerate() {
            if param.doc != doc {
                doc = &param.doc;
                lines.extend(doc.iter().map(|l| format!("# {l}").trim_end().to_owned()));
            }
            let place = &self.words.params[k];
            for (at, _) in place.match_indices('.') {
                if modules.insert(place[..at].to_owned()) {
                    lines.push(format!("self.{} = nn.Module()", &place[..at]));
                }
            }
            lines.push(self.declaration(param, place));
        }
        if self.like().is_none() {
            lines.push("# Knows device and type, for want of parameters.".to_owned());
            lines.push(
                "self.register_buffer(\"_like\", torch.empty((), **kind), persistent=False)".to_owned(),
            );
        }
        if !self.model.params.is_empty() {
            lines.push("self.reset_parameters()".to_owned());
        }
        method(&head, &lines)
    }

    /// `self.W = nn.Parameter(torch.empty(N, N, **kind))`
    fn declaration(&self, param: &Param, place: &str) -> String {
        let sizes = self.sizes(&param.dims, "");
        let shape = match sizes.as_slice() {
            [] => "()".to_owned(),
            sizes => sizes.iter().map(Py::flat).collect::<Vec<_>>().join(", "),
        };
        let empty = format!("torch.empty({shape}, **kind)");
        let number = |x: &ConstExpr| self.words.number(&self.model.axes, x, "").flat();
        let fixed = if param.learned { "" } else { ".requires_grad_(False)" };
        let ranged = |text: String| format!("self.{place} = {text}{fixed}");
        let remark = match is_one(&param.gradscale) {
            true => String::new(),
            false => format!("  # gradient times {}", param.gradscale.text(&self.model.axes)),
        };
        let text = match &param.constraint {
            Constraint::Interval(a, b) => ranged(format!("Interval({empty}, {}, {})", number(a), number(b))),
            Constraint::Above(a) => ranged(format!("Above({empty}, {})", number(a))),
            Constraint::Below(b) => ranged(format!("Below({empty}, {})", number(b))),
            Constraint::Free if param.learned => format!("self.{place} = nn.Parameter({empty})"),
            Constraint::Free => match place.rsplit_once('.') {
                Some((module, name)) => format!("self.{module}.register_buffer(\"{name}\", {empty})"),
                None => format!("self.register_buffer(\"{place}\", {empty})"),
            },
        };
        text + &remark
    }

    /// `reset_parameters`
    pub(super) fn parameters(&self) -> String {
        if self.model.params.is_empty() {
            return String::new();
        }
        let mut lines = vec!["\"\"\"Draws all parameters anew, as the spec says.\"\"\"".to_owned()];
        let order = self.order();
        let same = |a: &usize, b: &usize| {
            let (a, b) = (&self.model.params[*a], &self.model.params[*b]);
            a.init == b.init && is_free(a) && is_free(b) && !matches!(a.init, Init::Param(_))
        };
        let mut bound = None;
        for group in order.chunk_by(same) {
            if let Init::FanIn(axis) = self.model.params[group[0]].init
                && bound != Some(axis)
            {
                let size = self.words.size(&self.model.axes, axis, "self.");
                lines.push(format!("bound = {}", fan_in(size)));
                bound = Some(axis);
            }
            match group {
                [one] => lines.push(self.initial(*one, &format!("self.{}", self.words.params[*one]))),
                group => {
                    let places: Vec<Py> =
                        group.iter().map(|k| Py::word(format!("self.{}", self.words.params[*k]))).collect();
                    lines.push(format!("for parameter in {}:", tuple(&places)));
                    lines.push(format!("    {}", self.initial(group[0], "parameter")));
                }
            }
        }
        format!("    @torch.no_grad()\n{}", method("def reset_parameters(self) -> None:", &lines))
    }

    /// The parameters, each behind the one that it starts from.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = vec![];
        let mut waiting: Vec<usize> = (0..self.model.params.len()).rev().collect();
        while let Some(k) = waiting.pop() {
            if order.contains(&k) {
                continue;
            }
            match self.model.params[k].init {
                Init::Param(ParamId(other)) if !order.contains(&(other as usize)) && other as usize != k => {
                    waiting.push(k);
                    waiting.push(other as usize);
                }
                _ => order.push(k),
            }
        }
        order
    }

    /// The first value of a parameter.
    fn initial(&self, k: usize, place: &str) -> String {
        let param = &self.model.params[k];
        let number = |x: &ConstExpr| self.number(x).flat();
        if !is_free(param) {
            let value = match &param.init {
                Init::Constant(c) => format!("torch.full_like({place}.raw, {})", number(c)),
                Init::Param(p) => self.value(*p),
                other => self.drawn(other, &format!("torch.empty_like({place}.raw)"), &param.dims),
            };
            return format!("{place}.raw.copy_({place}.inverse({value}))");
        }
        match &param.init {
            Init::Constant(c) => format!("nn.init.constant_({place}, {})", number(c)),
            Init::Uniform(a, b) => format!("nn.init.uniform_({place}, {}, {})", number(a), number(b)),
            Init::Normal(mean, sd) => format!("nn.init.normal_({place}, {}, {})", number(mean), number(sd)),
            Init::FanIn(_) => format!("nn.init.uniform_({place}, -bound, bound)"),
            Init::Orthogonal(gain) => {
                let matrix = if param.dims.len() == 2 { "" } else { "[None]" };
                format!("nn.init.orthogonal_({place}{matrix}, {})", number(gain))
            }
            Init::Param(p) => format!("{place}.copy_({})", self.value(*p)),
        }
    }

    fn value(&self, p: ParamId) -> String {
        let place = format!("self.{}", self.words.params[p.index()]);
        if is_free(&self.model.params[p.index()]) { place } else { format!("{place}()") }
    }

    /// A tensor that is drawn, element by element.
    fn drawn(&self, init: &Init, empty: &str, dims: &[Axis]) -> String {
        match init {
            Init::Constant(c) => format!("{empty}.fill_({})", self.number(c).flat()),
            Init::Uniform(a, b) => {
                format!("{empty}.uniform_({}, {})", self.number(a).flat(), self.number(b).flat())
            }
            Init::Normal(mean, sd) => {
                format!("{empty}.normal_({}, {})", self.number(mean).flat(), self.number(sd).flat())
            }
            Init::FanIn(axis) => {
                let bound = fan_in(self.words.size(&self.model.axes, *axis, "self."));
                format!("{empty}.uniform_(-{bound}, {bound})")
            }
            Init::Orthogonal(gain) => {
                let matrix = if dims.len() == 2 { "m" } else { "m[None]" };
                let gain = self.number(gain).flat();
                format!("torch.stack([nn.init.orthogonal_({matrix}, {gain}).view_as(m) for m in {empty}])")
            }
            Init::Param(p) => self.value(*p),
        }
    }

    /// A tensor that knows the module's device and type.
    pub(super) fn like(&self) -> Option<String> {
        let (k, param) = self.model.params.iter().enumerate().next()?;
        let place = &self.words.params[k];
        let raw = if is_free(param) { "" } else { ".raw" };
        Some(format!("self.{place}{raw}"))
    }

    fn like_or_buffer(&self) -> String {
        self.like().unwrap_or_else(|| "self._like".to_owned())
    }

    /// `initial_state`
    pub(super) fn states(&self) -> String {
        let like = self.like_or_buffer();
        let mut lines =
            vec!["\"\"\"The states at the start of an episode, for a number of rows.\"\"\"".to_owned()];
        let values = self.model.states.iter().zip(&self.words.states);
        let fields: Vec<Py> =
            values.map(|(s, word)| Py::keyword(word, Py::word(self.state(s, &like)))).collect();
        let text = Py::call("State", fields);
        let text = if 3 < self.model.states.len() { broken(&text) } else { text.laid_out(8, 7) };
        lines.push(format!("return {text}"));
        method("def initial_state(self, batch: int) -> State:", &lines)
    }

    fn state(&self, s: &State, like: &str) -> String {
        let dims = super::names::dims(s.shape);
        let mut sizes = vec![Py::word("batch")];
        sizes.extend(self.sizes(&dims, "self."));
        let shape = sizes.iter().map(Py::flat).collect::<Vec<_>>().join(", ");
        match &s.init {
            Init::Constant(ConstExpr::Number(0.0)) => format!("{like}.new_zeros({shape})"),
            Init::Constant(c) => format!("{like}.new_full({}, {})", tuple(&sizes), self.number(c).flat()),
            Init::Param(p) => format!("{}.expand({shape})", self.value(*p)),
            other => self.drawn(other, &format!("{like}.new_empty({shape})"), &dims),
        }
    }

    /// `next_episode`, where states outlive an episode.
    pub(super) fn episodes(&self) -> String {
        let usual = ResetPolicy::EveryEpisodes(1);
        if self.model.states.iter().all(|s| s.reset == usual) {
            return String::new();
        }
        let mut lines = vec![
            "\"\"\"The states at the start of an episode (counted from 0), from the last ones of the episode before.\"\"\""
                .to_owned(),
        ];
        let some = &self.words.states[0];
        lines.push(format!("new = self.initial_state(state.{some}.shape[0])"));
        let field = |(s, word): (&State, &String)| {
            let value = match s.reset {
                ResetPolicy::EveryEpisodes(1) => format!("new.{word}"),
                ResetPolicy::EveryEpisodes(k) => {
                    format!("new.{word} if episode % {k} == 0 else state.{word}")
                }
                ResetPolicy::Persist => format!("state.{word}"),
            };
            Py::keyword(word, Py::word(value))
        };
        let fields = self.model.states.iter().zip(&self.words.states).map(field).collect();
        lines.push(format!("return {}", Py::call("State", fields).laid_out(8, 7)));
        method("def next_episode(self, state: State, episode: int) -> State:", &lines)
    }

    /// A method for every noise that draws it for one step.
    pub(super) fn noises(&self) -> Vec<String> {
        let inputs = self.model.inputs.iter().zip(&self.words.inputs);
        let noise = |(i, word): (&crate::model::Input, &String)| match &i.role {
            Role::Noise(noise) => Some(self.noise(word, noise, i.shape)),
            _ => None,
        };
        inputs.filter_map(noise).collect()
    }

    fn noise(&self, word: &str, noise: &Noise, shape: Shape) -> String {
        let dims = super::names::dims(shape);
        let mut sizes = vec![Py::word("batch")];
        sizes.extend(self.sizes(&dims, "self."));
        let shape = sizes.iter().map(Py::flat).collect::<Vec<_>>().join(", ");
        let like = self.like_or_buffer();
        let often = if noise.locked { "Drawn once for a whole sequence" } else { "Drawn in every step" };
        let (doc, value) = match &noise.law {
            Law::Dropout(p) => (
                format!("{often}: 0 or 1 / (1 - p); in evaluation always 1."),
                format!(
                    "nn.functional.dropout({like}.new_ones({shape}), {}, self.training)",
                    self.number(p).flat()
                ),
            ),
            Law::Drawn(init) => {
                (format!("{often}."), self.drawn(init, &format!("{like}.new_empty({shape})"), &dims))
            }
        };
        let lines = [format!("\"\"\"{doc}\"\"\""), format!("return {value}")];
        method(&format!("def draw_{word}(self, batch: int) -> Tensor:"), &lines)
    }
}

fn is_free(param: &Param) -> bool {
    param.constraint == Constraint::Free
}

/// `1 / math.sqrt(self.N)`, which may have a sign before it.
fn fan_in(size: Py) -> String {
    format!("1 / {}", Py::call("math.sqrt", vec![size]).flat())
}

/// A call with one argument on each line.
fn broken(call: &Py) -> String {
    match call {
        Py::Call(f, arguments) => {
            let lines: String = arguments.iter().map(|a| format!("            {},\n", a.flat())).collect();
            format!("{f}(\n{lines}        )")
        }
        other => other.flat(),
    }
}
