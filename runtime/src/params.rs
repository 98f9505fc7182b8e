//! Parameters: the raw numbers that the optimiser moves.
//!
//! A parameter with a range (`in (0, 1)`, `> 0`) is kept as a raw number whose image under
//! [`Range::value`] the equations see. Initial values depend on the seed and the parameter's name,
//! not on the order of declarations.
//!
//! A file may hold a parameter in the units of the spec, under its name, or as the emitted PyTorch module keeps it,
//! under its [`About::key`]: for a parameter with a range that is the raw number.

use crate::Error;
use crate::rng::{Purpose, Stream};
use crate::tensors::{Taker, Tensor, Tensors, brackets};
use compiler::ir::{ParamId, Sizes};
use compiler::model::{Init, Model, Param, Range};
use std::collections::BTreeMap;

/// The parameters of a model.
#[derive(Clone, Debug)]
pub struct ParamStore {
    /// What is known of each tensor, by [`ParamId`].
    pub about: Vec<About>,
    /// The raw numbers, by [`ParamId`], row-major.
    pub raw: Vec<Vec<f32>>,
}

/// What is known of a parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its shape outside.
    pub dims: Vec<usize>,
    /// Whether it is trained.
    pub learned: bool,
    /// Its range.
    pub range: Range,
    /// Factor of its gradient.
    pub gradscale: f32,
    /// Its key in the state dict of the emitted PyTorch module.
    pub key: String,
}

/// The numbers of a parameter in a file.
pub enum Found {
    /// In the units of the spec.
    Values(Vec<f64>),
    /// As the optimiser moves them.
    Raw(Vec<f64>),
}

impl About {
    /// What is known of a parameter of a spec.
    pub fn new(param: &Param, sizes: &Sizes) -> Self {
        About {
            name: param.name.clone(),
            dims: param.dims.iter().map(|a| sizes.of(*a)).collect(),
            learned: param.learned,
            range: param.constraint.range(sizes),
            gradscale: param.gradscale.eval(sizes) as f32,
            key: compiler::back::torch::key(param),
        }
    }

    /// A parameter of something else than the spec, without a range.
    pub fn other(name: String, dims: Vec<usize>) -> Self {
        let key = name.clone();
        About { name, dims, learned: true, range: Range::Free, gradscale: 1.0, key }
    }

    /// Takes it out of a file: under its name, or under its key.
    pub fn take(&self, taker: &mut Taker) -> Option<Found> {
        let by_key = taker.shape(&self.name).is_none() && taker.shape(&self.key).is_some();
        let name = if by_key { &self.key } else { &self.name };
        let numbers = taker.required(name, &self.dims)?.to_f64();
        Some(if by_key && self.range != Range::Free { Found::Raw(numbers) } else { Found::Values(numbers) })
    }

    /// Whether a file has it.
    pub fn is_in(&self, taker: &Taker) -> bool {
        taker.shape(&self.name).is_some() || taker.shape(&self.key).is_some()
    }

    /// Numbers of a file in the units of the spec.
    pub fn values(&self, found: Found) -> Vec<f64> {
        match found {
            Found::Values(values) => values,
            Found::Raw(raw) => raw.into_iter().map(|x| self.range.value(x)).collect(),
        }
    }

    /// Numbers of a file as the optimiser moves them.
    fn found_raw(&self, found: Found) -> Result<Vec<f32>, Error> {
        match found {
            Found::Values(values) => self.to_raw(&values),
            Found::Raw(raw) => match raw.iter().find(|x| !x.is_finite()) {
                Some(x) => Err(Error::input(format!("tensor `{}` must be finite, but has {x}", self.key))),
                None => Ok(raw.into_iter().map(|x| x as f32).collect()),
            },
        }
    }

    fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Raw numbers for numbers in the units of the spec.
    fn to_raw(&self, values: &[f64]) -> Result<Vec<f32>, Error> {
        let raw = |x: &f64| match self.range.raw(*x) {
            Some(raw) if x.is_finite() => Ok(raw as f32),
            _ => Err(Error::input(format!(
                "parameter `{}` cannot be {x}: {}",
                self.name,
                range_text(self.range)
            ))),
        };
        values.iter().map(raw).collect()
    }
}

fn range_text(range: Range) -> String {
    match range {
        Range::Free => "it must be finite".into(),
        Range::Interval(a, b) => format!("it must lie between {a} and {b}"),
        Range::Above(a) => format!("it must be above {a}"),
        Range::Below(b) => format!("it must be below {b}"),
    }
}

impl ParamStore {
    /// Draws the parameters of a model. `constants` replaces the declared start of some of them.
    ///
    /// # Errors
    /// If a start lies outside of a range, or a constant names no parameter.
    pub fn new(
        model: &Model,
        sizes: &Sizes,
        seed: u64,
        constants: &BTreeMap<String, f64>,
    ) -> Result<Self, Error> {
        for name in constants.keys() {
            if model.param(name).is_none() {
                let names: Vec<&str> = model.params.iter().map(|p| p.name.as_str()).collect();
                let help = match grammar::diag::did_you_mean(name, names.iter().copied()) {
                    Some(c) => format!("did you mean `{c}`?"),
                    None => format!("its parameters are {}", names.join(", ")),
                };
                let message = format!("`init.{name}`: spec `{}` has no parameter `{name}`", model.name);
                return Err(Error::usage(message).help(help));
            }
        }
        let mut values: Vec<Option<Vec<f64>>> = vec![None; model.params.len()];
        let mut store = ParamStore { about: vec![], raw: vec![] };
        for (k, param) in model.params.iter().enumerate() {
            let about = About::new(param, sizes);
            let start = match constants.get(&param.name) {
                Some(x) => vec![*x; about.count()],
                None => start(model, sizes, seed, k, &mut values, 0)?,
            };
            store.raw.push(about.to_raw(&start)?);
            values[k] = Some(start);
            store.about.push(about);
        }
        Ok(store)
    }

    /// The number of learned numbers.
    pub fn count(&self) -> usize {
        self.about.iter().filter(|a| a.learned).map(About::count).sum()
    }

    /// The numbers that the equations see, by [`ParamId`].
    pub fn values(&self) -> Vec<Vec<f32>> {
        self.values_of(self.about.len())
    }

    /// Those of the first parameters only: the spec's, where others follow.
    pub fn values_of(&self, count: usize) -> Vec<Vec<f32>> {
        let one = |(about, raw): (&About, &Vec<f32>)| match about.range {
            Range::Free => raw.clone(),
            range => raw.iter().map(|r| range.value(f64::from(*r)) as f32).collect(),
        };
        self.about.iter().zip(&self.raw).take(count).map(one).collect()
    }

    /// Whether [`ParamStore::chain`] changes the gradient of any learned parameter.
    pub fn chains(&self) -> bool {
        self.about.iter().any(|a| a.learned && (a.range != Range::Free || a.gradscale != 1.0))
    }

    /// Turns gradients with respect to values into gradients with respect to raw numbers, scaled;
    /// zero for what is not learned.
    pub fn chain(&self, gradients: &mut [Vec<f32>]) {
        for ((about, raw), gradient) in self.about.iter().zip(&self.raw).zip(gradients) {
            if !about.learned {
                gradient.fill(0.0);
                continue;
            }
            if about.range != Range::Free {
                for (g, r) in gradient.iter_mut().zip(raw) {
                    *g = (f64::from(*g) * about.range.slope(f64::from(*r))) as f32;
                }
            }
            if about.gradscale != 1.0 {
                gradient.iter_mut().for_each(|g| *g *= about.gradscale);
            }
        }
    }

    /// The parameters in the units of the spec, under their names.
    pub fn export(&self) -> Tensors {
        let values = self.values();
        let named = self.about.iter().zip(values);
        named.map(|(a, v)| (a.name.clone(), Tensor::f32(a.dims.clone(), v))).collect()
    }

    /// Replaces all parameters by the tensors of a file.
    ///
    /// # Errors
    /// If a tensor is missing, unknown, misshapen or outside of its range.
    pub fn import(&mut self, place: &str, tensors: Tensors) -> Result<(), Error> {
        self.import_those(place, tensors, |_, _, _| true).map(drop)
    }

    /// Replaces the first `required` parameters by the tensors of a file, and those of the others that it has.
    /// Gives the names of those that it has not.
    ///
    /// # Errors
    /// If a tensor is missing, unknown, misshapen or outside of its range.
    pub fn import_first(
        &mut self,
        required: usize,
        place: &str,
        tensors: Tensors,
    ) -> Result<Vec<String>, Error> {
        self.import_those(place, tensors, |k, about, taker| k < required || about.is_in(taker))
    }

    fn import_those(
        &mut self,
        place: &str,
        tensors: Tensors,
        wanted: impl Fn(usize, &About, &Taker) -> bool,
    ) -> Result<Vec<String>, Error> {
        let mut taker = Taker::new(place, tensors);
        let (mut found, mut left) = (vec![], vec![]);
        for (k, about) in self.about.iter().enumerate() {
            match wanted(k, about, &taker) {
                true => found.extend(about.take(&mut taker).map(|f| (k, f))),
                false => left.push(about.name.clone()),
            }
        }
        taker.finish().map_err(|e| e.help(self.expected()))?;
        for (k, numbers) in found {
            self.raw[k] = self.about[k].found_raw(numbers)?;
        }
        Ok(left)
    }

    /// `it holds W [100, 17], eta []`
    fn expected(&self) -> String {
        let one = |a: &About| match a.key == a.name {
            true => format!("{} {}", a.name, brackets(&a.dims)),
            false => format!("{} or {} {}", a.name, a.key, brackets(&a.dims)),
        };
        format!("the tensors of a file: {}", self.about.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    /// The parameters as the emitted PyTorch module keeps them.
    pub fn state_dict(&self) -> Tensors {
        let all = self.about.iter().zip(&self.raw);
        all.map(|(a, raw)| (a.key.clone(), Tensor::f32(a.dims.clone(), raw.clone()))).collect()
    }

    /// The raw numbers, as tensors named `raw.NAME`.
    pub fn export_raw(&self, into: &mut Tensors) {
        for (about, raw) in self.about.iter().zip(&self.raw) {
            into.insert(format!("raw.{}", about.name), Tensor::f32(about.dims.clone(), raw.clone()));
        }
    }

    /// Takes back what [`ParamStore::export_raw`] gave.
    pub fn import_raw(&mut self, taker: &mut Taker) {
        for (about, raw) in self.about.iter().zip(&mut self.raw) {
            if let Some(t) = taker.required(&format!("raw.{}", about.name), &about.dims) {
                *raw = t.to_f32();
            }
        }
    }
}

/// Starting numbers of a parameter, in the units of the spec.
fn start(
    model: &Model,
    sizes: &Sizes,
    seed: u64,
    index: usize,
    done: &mut [Option<Vec<f64>>],
    depth: usize,
) -> Result<Vec<f64>, Error> {
    if let Some(values) = &done[index] {
        return Ok(values.clone());
    }
    let param = &model.params[index];
    let dims: Vec<usize> = param.dims.iter().map(|a| sizes.of(*a)).collect();
    if let Init::Param(ParamId(other)) = param.init {
        if depth > model.params.len() {
            return Err(Error::input(format!("the start of parameter `{}` depends on itself", param.name)));
        }
        return start(model, sizes, seed, other as usize, done, depth + 1);
    }
    let mut stream = Stream::named(seed, Purpose::Parameters, &param.name);
    Ok(draw(&param.init, &dims, sizes, &mut stream))
}

/// Draws a tensor; [`Init::Param`] gives zeros.
pub fn draw(init: &Init, dims: &[usize], sizes: &Sizes, stream: &mut Stream) -> Vec<f64> {
    let count = dims.iter().product();
    let uniform = |s: &mut Stream, a: f64, b: f64| a + (b - a) * s.uniform();
    match init {
        Init::Constant(x) => vec![x.eval(sizes); count],
        Init::Uniform(a, b) => {
            let (a, b) = (a.eval(sizes), b.eval(sizes));
            (0..count).map(|_| uniform(stream, a, b)).collect()
        }
        Init::Normal(mean, sd) => {
            let (mean, sd) = (mean.eval(sizes), sd.eval(sizes));
            (0..count).map(|_| mean + sd * stream.normal()).collect()
        }
        Init::FanIn(axis) => {
            let bound = 1.0 / (sizes.of(*axis) as f64).sqrt();
            (0..count).map(|_| uniform(stream, -bound, bound)).collect()
        }
        Init::Orthogonal(gain) => orthogonal(dims, gain.eval(sizes), stream),
        Init::Param(_) => vec![0.0; count],
    }
}

/// A matrix whose rows or columns (whichever are fewer) are orthonormal, times a gain: Gaussian
/// vectors, made orthogonal one after the other, twice for accuracy.
fn orthogonal(dims: &[usize], gain: f64, stream: &mut Stream) -> Vec<f64> {
    let (rows, columns) = match dims {
        [r, c] => (*r, *c),
        other => (1, other.iter().product()),
    };
    let (count, length) = (rows.min(columns), rows.max(columns));
    let mut basis: Vec<Vec<f64>> = vec![];
    while basis.len() < count {
        let mut v: Vec<f64> = (0..length).map(|_| stream.normal()).collect();
        for _ in 0..2 {
            for b in &basis {
                let along: f64 = v.iter().zip(b).map(|(x, y)| x * y).sum();
                v.iter_mut().zip(b).for_each(|(x, y)| *x -= along * y);
            }
        }
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm > 1e-6 {
            basis.push(v.iter().map(|x| x / norm).collect());
        }
    }
    let at = |r: usize, c: usize| if rows <= columns { basis[r][c] } else { basis[c][r] };
    (0..rows * columns).map(|k| gain * at(k / columns, k % columns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "spec s {
  axis N = 6, M = 4
  in u[M]
  learn W[N,M], b[N] ~ linear
  learn eta in (0, 1) = 0.25
  learn V[N,N] ~ normal(1, 0.5)
  learn Q[N,M] ~ orthogonal(2)
  learn tau > 1 = 3
  state y[N] = 0
  y' = tanh(W @ u + b + eta * (V @ y) + tau * (Q @ u))
  out y'
}";

    fn model() -> (Model, Sizes) {
        let checked = compiler::check::check(SPEC);
        let model = checked.models.into_iter().next().unwrap_or_else(|| panic!("{:?}", checked.diagnostics));
        let sizes = Sizes::bind(&model.axes, &BTreeMap::new()).expect("sizes");
        (model, sizes)
    }

    fn store(seed: u64) -> ParamStore {
        let (model, sizes) = model();
        ParamStore::new(&model, &sizes, seed, &BTreeMap::new()).expect("store")
    }

    fn value(store: &ParamStore, name: &str) -> Vec<f32> {
        store.export()[name].to_f32()
    }

    #[test]
    fn starts_as_declared() {
        let s = store(1);
        assert_eq!(s.count(), 24 + 6 + 1 + 36 + 24 + 1);
        assert!((value(&s, "eta")[0] - 0.25).abs() < 1e-6 && (value(&s, "tau")[0] - 3.0).abs() < 1e-5);
        assert!(value(&s, "W").iter().all(|x| x.abs() < 0.5) && value(&s, "W").iter().any(|x| *x < -0.1));
        let q = value(&s, "Q");
        for a in 0..4 {
            for b in 0..4 {
                let dot: f32 = (0..6).map(|r| q[4 * r + a] * q[4 * r + b]).sum();
                assert!((dot - if a == b { 4.0 } else { 0.0 }).abs() < 1e-5);
            }
        }
        assert_eq!(s.raw, store(1).raw);
        assert_ne!(s.raw, store(2).raw);
    }

    #[test]
    fn constants_replace_starts() {
        let (model, sizes) = model();
        let new =
            |name: &str, x| ParamStore::new(&model, &sizes, 0, &BTreeMap::from([(name.to_string(), x)]));
        assert!((value(&new("eta", 0.5).expect("ok"), "eta")[0] - 0.5).abs() < 1e-6);
        assert!(new("eta", 1.5).expect_err("range").message.contains("between 0 and 1"));
        assert!(new("etta", 0.5).expect_err("name").help[0].contains("`eta`"));
    }

    #[test]
    fn export_and_import_agree() {
        let mut other = store(2);
        other.import("p", store(1).export()).expect("import");
        for (a, b) in other.values().iter().flatten().zip(store(1).values().iter().flatten()) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0));
        }
        let mut wrong = store(1).export();
        wrong.insert("eta".into(), Tensor::f32(vec![], vec![1.0]));
        assert!(other.import("p", wrong).is_err());
    }

    #[test]
    fn state_dicts_and_values_are_read_alike() {
        let first = store(1);
        let mut other = store(2);
        let dict = first.state_dict();
        assert!(dict.contains_key("eta.raw") && dict.contains_key("W") && !dict.contains_key("eta"));
        other.import("p", dict.clone()).expect("import");
        assert_eq!(other.raw, first.raw, "raw numbers come back as they are");
        let mut both = dict.clone();
        both.insert("eta".into(), Tensor::f32(vec![], vec![0.5]));
        let error = other.import("p", both).expect_err("two of one");
        assert!(error.message.contains("unknown tensor `eta.raw`"), "{}", error.message);
        let mut wrong = dict.clone();
        wrong.remove("tau.raw");
        wrong.insert("W".into(), Tensor::f32(vec![2, 2], vec![0.0; 4]));
        let error = other.import("p", wrong).expect_err("mistakes");
        let lines: Vec<&str> = error.message.lines().collect();
        assert_eq!(
            lines,
            [
                "tensor `W` in `p` has shape [2, 2], but it must have shape [6, 4]",
                "`p` has no tensor `tau`; it needs one of shape []"
            ]
        );
        assert!(error.help[0].contains("tau or tau.raw []"), "{}", error.help[0]);
        let mut infinite = dict;
        infinite.insert("eta.raw".into(), Tensor::f32(vec![], vec![f32::INFINITY]));
        assert!(other.import("p", infinite).expect_err("infinite").message.contains("`eta.raw`"));
    }

    #[test]
    fn others_may_be_missing() {
        let mut first = store(1);
        first.about.push(About::other("decoder".into(), vec![2]));
        first.raw.push(vec![1.0, 2.0]);
        let spec_only = store(2).state_dict();
        assert_eq!(first.import_first(6, "p", spec_only.clone()).expect("import"), ["decoder"]);
        assert_eq!(first.raw[6], [1.0, 2.0]);
        let mut all = spec_only;
        all.insert("decoder".into(), Tensor::f32(vec![2], vec![3.0, 4.0]));
        assert!(first.import_first(6, "p", all).expect("import").is_empty());
        assert_eq!(first.raw[6], [3.0, 4.0]);
    }

    /// The chain through ranges against finite differences of `values`.
    #[test]
    fn gradients_chain_to_raw_numbers() {
        let base = store(1);
        for name in ["eta", "tau", "b"] {
            let k = base.about.iter().position(|a| a.name == name).expect("parameter");
            let mut gradients: Vec<Vec<f32>> = base.raw.iter().map(|r| vec![1.0; r.len()]).collect();
            base.chain(&mut gradients);
            let h = 1.0 / 128.0;
            let at = |d: f32| {
                let mut s = base.clone();
                s.raw[k][0] += d;
                s.values()[k][0]
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - gradients[k][0]).abs() < 1e-3, "{name}: {slope} {}", gradients[k][0]);
        }
    }
}
