//! Features and gradients against their definitions; recipes of encoders.

use super::*;
use crate::options::Options;

fn numbers(count: usize, scale: f64, tag: f64) -> Vec<f32> {
    (0..count).map(|k| (scale * (0.7 * k as f64 + tag).sin()) as f32).collect()
}

fn read(text: &str, image: Map) -> (Encoder, Vec<String>) {
    let mut o = Options::new("encoder", text.parse().expect("toml"));
    let encoder = Encoder::new(&mut o, Some(image));
    let problems = o.finish().1.into_iter().map(|p| format!("{}: {}", p.key, p.message)).collect();
    (encoder, problems)
}

fn encoder() -> Encoder {
    let text = "layers = [{ channels = 5, size = 3, stride = 2 }, { channels = 4, size = 2, activation = \"relu\" }, \
                { kind = \"dense\", channels = 3, activation = \"none\" }]";
    let (encoder, problems) = read(text, Map { height: 9, width: 7, channels: 2 });
    assert_eq!(problems, Vec::<String>::new());
    encoder
}

fn weights(encoder: &Encoder) -> Vec<Vec<f32>> {
    encoder.zeros().iter().enumerate().map(|(k, w)| numbers(w.len(), 0.4, k as f64)).collect()
}

/// The layers by definition, in double precision; the loss is a weighted sum of the features.
fn meant(encoder: &Encoder, weights: &[Vec<f32>], images: &[f32], mix: &[f32]) -> f64 {
    let mut x: Vec<f64> = images.iter().map(|x| f64::from(*x)).collect();
    for (layer, w) in encoder.layers.iter().zip(weights.chunks(2)) {
        let (a, b) = (layer.input, layer.output());
        let mut y = vec![];
        for n in 0..x.len() / a.count() {
            for (r, c, o) in (0..b.height)
                .flat_map(|r| (0..b.width).flat_map(move |c| (0..b.channels).map(move |o| (r, c, o))))
            {
                let mut z = f64::from(w[1][o]);
                for i in 0..layer.kernel.0 {
                    for j in 0..layer.kernel.1 {
                        for k in 0..a.channels {
                            let (row, column) = (layer.stride * r + i, layer.stride * c + j);
                            let at = ((o * layer.kernel.0 + i) * layer.kernel.1 + j) * a.channels + k;
                            let from = ((n * a.height + row) * a.width + column) * a.channels + k;
                            z += f64::from(w[0][at]) * x[from];
                        }
                    }
                }
                y.push(match layer.activation {
                    Activation::Tanh => z.tanh(),
                    Activation::Relu => z.max(0.0),
                    Activation::None => z,
                });
            }
        }
        x = y;
    }
    assert_eq!(x.len(), mix.len());
    x.iter().zip(mix).map(|(y, m)| y * f64::from(*m)).sum()
}

#[test]
fn features_are_as_defined() {
    let encoder = encoder();
    let weights = weights(&encoder);
    let images = numbers(3 * 126, 1.0, 5.0);
    let found = Bound { encoder: &encoder, weights: &weights }.forward(&images, 3);
    let sizes: Vec<usize> = found.iter().map(Vec::len).collect();
    assert_eq!(sizes, [3 * 4 * 3 * 5, 3 * 3 * 2 * 4, 3 * 3]);
    for (k, found) in found[2].iter().enumerate() {
        let mix: Vec<f32> = (0..9).map(|i| f32::from(u8::from(i == k))).collect();
        let wanted = meant(&encoder, &weights, &images, &mix);
        assert!((f64::from(*found) - wanted).abs() < 1e-6, "{k}: {found} {wanted}");
        assert!(wanted.abs() > 1e-3, "vacuous");
    }
}

#[test]
fn gradients_are_slopes_of_the_features() {
    let encoder = encoder();
    let weights = weights(&encoder);
    let (images, mix) = (numbers(3 * 126, 1.0, 5.0), numbers(9, 1.0, 6.0));
    let bound = Bound { encoder: &encoder, weights: &weights };
    let mut gradients = encoder.zeros();
    // Gradients are added: whatever was there stays.
    gradients[0][0] = 7.0;
    let activations = bound.forward(&images, 3);
    bound.backward(&images, 3, &activations, mix.clone(), &mut gradients);
    gradients[0][0] -= 7.0;
    let mut moving = 0;
    for k in 0..weights.len() {
        for at in 0..weights[k].len() {
            let slope = |h: f32| {
                let mut w = weights.clone();
                w[k][at] += h;
                (meant(&encoder, &w, &images, &mix), f64::from(w[k][at]))
            };
            let (up, down) = (slope(1e-3), slope(-1e-3));
            let slope = (up.0 - down.0) / (up.1 - down.1);
            let found = f64::from(gradients[k][at]);
            assert!((slope - found).abs() < 2e-5 + 1e-3 * slope.abs(), "{k} {at}: {slope} {found}");
            moving += usize::from(slope.abs() > 1e-3);
        }
    }
    assert!(moving > 150, "vacuous: {moving}");
}

#[test]
fn an_image_does_not_depend_on_the_count_of_threads_or_runs() {
    let encoder = encoder();
    let weights = weights(&encoder);
    let images = numbers(6 * 126, 1.0, 5.0);
    let run = |threads: usize| {
        crate::parallel::run(&mut vec![(); threads], (0..4).collect(), |_, _: usize| {
            Bound { encoder: &encoder, weights: &weights }.forward(&images, 6)
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn the_published_stack() {
    let layer = "{ channels = 64, size = 3, stride = 2 }";
    let image = Map { height: 31, width: 31, channels: 1 };
    let (encoder, problems) = read(&format!("layers = [{}]", [layer; 4].join(", ")), image);
    assert_eq!(problems, Vec::<String>::new());
    let maps: Vec<usize> = encoder.layers.iter().map(|l| l.output().width).collect();
    assert_eq!((maps, encoder.features()), (vec![15, 7, 3, 1], Some(64)));
    assert_eq!(encoder.zeros().iter().map(Vec::len).sum::<usize>(), 111_424);
}

#[test]
fn mistakes_are_told_once() {
    let image = Map { height: 4, width: 4, channels: 1 };
    let (_, problems) = read("layers = [{ size = 3 }, { size = 3 }, { size = 3, chanels = 1 }]", image);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("encoder.layers.1.size: patches of 3 by 3 do not fit"), "{problems:?}");
    assert!(problems[1].starts_with("encoder.layers.2.chanels: "), "{problems:?}");
    assert!(read("layers = [1]", image).1[0].contains("must be a list of tables"));
    let mut o = Options::new("encoder", "layers = [{ size = 3 }]".parse().expect("toml"));
    assert_eq!(Encoder::new(&mut o, None), Encoder::default());
    assert!(o.finish().1[0].message.contains("no images"));
}
