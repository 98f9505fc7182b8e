//! The tests of kernels can fail: barriers that are left out are noticed, and so are other mistakes that
//! the emulator knows.

use crate::bits::{compare, fill_gently};
use crate::device::{Device, has_compiler, models, sizes, source};
use compiler::back::cuda::Source;
use compiler::loops::NAMES;

/// The kernel that every barrier of a source belongs to, in the order of the text.
pub(crate) fn barriers(source: &Source) -> Vec<String> {
    let mut kernel = String::new();
    let mut found = vec![];
    for line in source.text.lines() {
        if line.starts_with("extern") || line.starts_with("__device__") {
            let is_kernel = line.contains("__launch_bounds__(");
            kernel = line.split(if is_kernel { "(const " } else { "(" }).next().unwrap_or("").to_owned();
            kernel = kernel.rsplit([' ', ')']).next().unwrap_or("").to_owned();
        }
        let calls = ["__syncthreads();", "cluster_barrier();"].map(|call| line.matches(call).count());
        found.extend((0..calls.iter().sum()).map(|_| kernel.clone()));
    }
    found
}

/// Whether a kernel with a barrier less gives other bits for some order of threads.
fn is_noticed(source: &Source, device: &Device, routine: usize) -> bool {
    (1..9).any(|seed| compare(source, device, routine, seed, fill_gently).is_err())
}

/// Of specs without vectors of fixed, small sizes: for a sum over at most eight numbers every thread reads
/// what it has written itself.
#[test]
fn every_barrier_that_is_left_out_is_noticed() {
    if !has_compiler() {
        return;
    }
    let mut tried = 0;
    let wanted = ["retroactive", "simple_fanout", "modulated", "stpn", "deltanet", "recurrent_delta"];
    for (text, model) in models().into_iter().filter(|(_, m)| wanted.contains(&m.name.as_str())) {
        let source = source(&text, &model, &sizes(&model, 41));
        let device = Device::new(&source);
        for (number, kernel) in barriers(&source).iter().enumerate() {
            let routine = NAMES.iter().position(|n| n.replace('.', "_") == *kernel);
            let Some(routine) = routine else { continue };
            assert!(compare(&source, &device, routine, 1, fill_gently).is_ok_and(|n| n > 0));
            device.leave_out(i32::try_from(number).expect("few barriers"));
            assert!(
                is_noticed(&source, &device, routine),
                "{}: {kernel} gives the same bits without barrier {number}",
                model.name
            );
            device.leave_out(-1);
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} barriers were left out");
}

/// A barrier that is taken out of the text, as an author of the back end might forget it.
#[test]
fn a_barrier_that_is_missing_in_the_text_is_noticed() {
    if !has_compiler() {
        return;
    }
    let (text, model) = models().into_iter().find(|(_, m)| m.name == "retroactive").expect("it is there");
    let whole = source(&text, &model, &sizes(&model, 33));
    let kernel = whole.text.find("forward_step(").expect("a kernel");
    let barrier = kernel + whole.text[kernel..].find("__syncthreads();").expect("a barrier");
    let without = whole.text[..barrier].to_owned() + &whole.text[barrier + "__syncthreads();".len()..];
    assert!(!is_noticed(&whole, &Device::new(&whole), 2));
    assert!(is_noticed(&whole, &Device::of_text(&without, 32), 2));
}

#[test]
fn the_emulator_knows_mistakes() {
    if !has_compiler() {
        return;
    }
    let source = r#"
        struct Tape { void *p[10]; float x; };
        struct At { int x, y, z; };
        extern "C" __global__ void fine(const Tape, const At) {
            __shared__ float cells[64];
            cells[threadIdx.x] = 1.0f;
            __syncthreads();
            if (cells[63 - threadIdx.x] != 1.0f) emulator::fail("not seen");
            if (__shfl_xor_sync(0xffffffffu, (float)threadIdx.x, 3) != (float)(threadIdx.x ^ 3))
                emulator::fail("a wrong shuffle");
        }
        extern "C" __global__ void some_threads(const Tape, const At) {
            if (threadIdx.x < 5) __syncthreads();
        }
        extern "C" __global__ void two_barriers(const Tape, const At) {
            if (threadIdx.x < 5) __syncthreads(); else __syncthreads();
        }
        extern "C" __global__ void foreign_lane(const Tape, const At) {
            __shfl_sync(0x0000ffffu, 1.0f, 20);
        }
        extern "C" __global__ void too_early(const Tape, const At) {
            __shared__ float cells[64];
            cells[threadIdx.x] = 1.0f;
            if (cells[63 - threadIdx.x] != 1.0f) emulator::fail("read too early");
        }
        extern "C" __global__ void others(const Tape, const At) {
            float *const own = dynamic_shared();
            *of_block(own + threadIdx.x, 1 - blockIdx.x) = 1.0f + blockIdx.x;
            cluster_barrier();
            if (own[63 - threadIdx.x] != 2.0f - blockIdx.x) emulator::fail("not handed over");
        }
        extern "C" __global__ void others_too_early(const Tape, const At) {
            float *const own = dynamic_shared();
            *of_block(own + threadIdx.x, 1 - blockIdx.x) = 1.0f + blockIdx.x;
            __syncthreads();
            if (own[63 - threadIdx.x] != 2.0f - blockIdx.x) emulator::fail("read too early");
        }
        extern "C" __global__ void half_a_cluster(const Tape, const At) {
            if (blockIdx.x == 0) cluster_barrier();
        }
        extern "C" __global__ void no_such_block(const Tape, const At) {
            of_block(dynamic_shared(), 2);
        }
        extern "C" __global__ void copied_too_early(const Tape tape, const At) {
            float *const own = dynamic_shared();
            static float from[4] = {1.0f, 2.0f, 3.0f, 4.0f};
            copy_ahead(own, from);
            if (own[0] == 1.0f) emulator::fail("no copy has to be there yet");
            if (own[0] != 1.0f) emulator::fail("read before it was copied");
        }
        extern "C" __global__ void early_end(const Tape, const At) {
            if (threadIdx.x == 9) return;
            __shfl_sync(0xffffffffu, 1.0f, 20);
        }
    "#;
    let device = Device::of_text(source, 64);
    let said = |name: &str| device.complaint(name, 1).unwrap_or_default();
    let in_cluster = |name: &str| device.complaint(name, 2).unwrap_or_default();
    assert_eq!(said("fine"), "");
    let lonely = "a barrier or a shuffle that not all threads reach";
    assert_eq!(said("some_threads"), lonely);
    assert_eq!(said("two_barriers"), lonely);
    assert_eq!(in_cluster("fine"), "");
    assert_eq!(in_cluster("others"), "");
    assert_eq!(in_cluster("others_too_early"), "read too early");
    assert_eq!(in_cluster("half_a_cluster"), lonely);
    assert_eq!(in_cluster("no_such_block"), "a block that the cluster does not have");
    assert_eq!(said("copied_too_early"), "read before it was copied");
    assert_eq!(said("early_end"), lonely);
    assert_eq!(said("foreign_lane"), "a shuffle with a thread that is not in its mask");
    assert_eq!(said("too_early"), "read too early");
    assert_eq!(said("fine"), "");
}
