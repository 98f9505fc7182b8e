//! quick timing
use compiler::gradcheck::*;
use compiler::ir::*;
use runtime::engine::*;
use std::sync::Arc;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&a[1]).unwrap();
    let n: usize = a[2].parse().unwrap();
    let b: usize = a[3].parse().unwrap();
    let t: usize = a[4].parse().unwrap();
    let model = Arc::new(compiler::check::check(&text).models.pop().unwrap());
    let mut bound = std::collections::BTreeMap::new();
    for ax in &model.axes.named {
        bound.insert(
            ax.name.clone(),
            if ax.name == "N" {
                n
            } else if ax.name == "I" {
                17
            } else {
                4
            },
        );
    }
    let sizes = Sizes::bind(&model.axes, &bound).unwrap();
    let case = random_case(&model, &sizes, &Options { steps: t, state_scale: 0.0, ..Options::default() });
    let t0 = Instant::now();
    let engine = Engine::new(
        model.clone(),
        sizes.clone(),
        Backend::Cranelift,
        &EngineOptions { input_bars: a.len() > 5, checkpoint_every: None },
    )
    .unwrap();
    println!(
        "compile {:?}, code {} bytes, frame {} adj {} sweeps {}/{}",
        t0.elapsed(),
        engine.code_bytes(),
        engine.program().frame_len,
        engine.program().adjoint_len,
        engine.program().forward.sweeps(),
        engine.program().backward.sweeps()
    );
    let params: Vec<Vec<f32>> =
        case.params.iter().map(|p| p.iter().map(|x| (*x * 0.3) as f32).collect()).collect();
    let bd = engine.bind(&params).unwrap();
    let mut tape = engine.tape(t, Mode::Train);
    let mut fw = vec![];
    let mut fb = vec![];
    for _ in 0..7 {
        let mut grads = engine.grads();
        let (mut f, mut bk) = (0.0, 0.0);
        for _ in 0..b {
            let s = Instant::now();
            bd.begin(&mut tape, None);
            for step in &case.sequence.inputs {
                for (k, x) in step.iter().enumerate() {
                    for (d, s) in bd.input_mut(&mut tape, InputId(k as u32)).iter_mut().zip(x.iter()) {
                        *d = *s as f32;
                    }
                }
                bd.step(&mut tape);
            }
            f += s.elapsed().as_secs_f64();
            for tt in 0..t {
                for o in 0..model.outputs.len() {
                    bd.output_bar_mut(&mut tape, tt, OutputId(o as u32)).fill(0.1);
                }
            }
            let s = Instant::now();
            bd.backward(&mut tape, &mut grads, 0.0, None);
            bk += s.elapsed().as_secs_f64();
        }
        std::hint::black_box(engine.finish(&bd, vec![grads]));
        fw.push(f * 1e3);
        fb.push((f + bk) * 1e3);
    }
    fw.sort_by(f64::total_cmp);
    fb.sort_by(f64::total_cmp);
    println!("fwd {:.2} ms, fwd+bwd {:.2} ms", fw[3], fb[3]);
}
