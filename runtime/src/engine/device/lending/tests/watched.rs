//! A device that writes down in which order it is asked for what: nothing of a call may come before the door has been
//! waited for, a call ends with a wait, and no other call comes between.

use super::*;
use crate::engine::device::{About, Blocks, Call, Graph, Kernel, Memory, Module};
use std::sync::Barrier;
use std::thread::ThreadId;

/// What a device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Admit,
    Work,
    Wait,
}

struct Watched {
    inner: Emulated,
    said: Mutex<Vec<(ThreadId, Word)>>,
}

impl Watched {
    fn says(&self, word: Word) -> &Emulated {
        locked(&self.said).push((std::thread::current().id(), word));
        &self.inner
    }
}

impl Device for Watched {
    fn about(&self) -> &About {
        self.inner.about()
    }
    fn memory(&self) -> Result<Memory, Fault> {
        self.inner.memory()
    }
    fn compile(&self, source: &str, name: &str) -> Result<Vec<u8>, Fault> {
        self.inner.compile(source, name)
    }
    fn load(&self, image: &[u8]) -> Result<Module, Fault> {
        self.inner.load(image)
    }
    fn unload(&self, module: Module) {
        self.inner.unload(module);
    }
    fn kernel(&self, module: Module, name: &str) -> Result<Kernel, Fault> {
        self.inner.kernel(module, name)
    }
    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        self.inner.allocate(bytes)
    }
    unsafe fn free(&self, at: Address) {
        // SAFETY: as promised to this one.
        unsafe { self.inner.free(at) };
    }
    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        unsafe { self.says(Word::Work).upload(to, from) }
    }
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        unsafe { self.says(Word::Work).download(from, to) }
    }
    fn wait(&self) -> Result<(), Fault> {
        self.says(Word::Wait).wait()
    }
    fn door(&self) -> Option<u64> {
        self.inner.door()
    }
    fn admit(&self) -> Result<(), Fault> {
        self.says(Word::Admit).admit()
    }
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        unsafe { self.says(Word::Work).copy(to, from, bytes) }
    }
    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        unsafe { self.says(Word::Work).clear(at, bytes) }
    }
    unsafe fn launch_blocks(&self, kernel: Kernel, blocks: &Blocks, call: &Call) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        unsafe { self.says(Word::Work).launch_blocks(kernel, blocks, call) }
    }
    fn resident(&self, kernel: Kernel, blocks: &Blocks) -> Result<usize, Fault> {
        self.inner.resident(kernel, blocks)
    }
    fn record(&self) -> Result<(), Fault> {
        self.says(Word::Work).record()
    }
    fn recorded(&self) -> Result<Graph, Fault> {
        self.says(Word::Work).recorded()
    }
    unsafe fn replay(&self, graph: Graph) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        unsafe { self.says(Word::Work).replay(graph) }
    }
    fn forget(&self, graph: Graph) {
        self.inner.forget(graph);
    }
}

/// Cuts what was said into calls, each of one thread: admitted, at work, waited for.
fn calls(said: &[(ThreadId, Word)]) -> usize {
    let mut rest = said.iter().peekable();
    let mut count = 0;
    while let Some((thread, word)) = rest.next() {
        assert_eq!(*word, Word::Admit, "nothing is asked for before the door is waited for");
        let mut own = vec![];
        while let Some((_, word)) = rest.next_if(|(by, word)| by == thread && *word != Word::Admit) {
            own.push(*word);
        }
        assert_eq!(own.last(), Some(&Word::Wait), "a call ends when its work is done");
        let works = own.iter().take_while(|word| **word == Word::Work).count();
        assert!(0 < works && own[works..].iter().all(|word| *word == Word::Wait), "{own:?}");
        count += 1;
    }
    count
}

#[test]
fn calls_wait_at_the_door_end_with_a_wait_and_take_turns() {
    let Some(_) = emulated() else { return };
    let said = Mutex::new(vec![]);
    let watched = Arc::new(Watched { inner: Emulated::new().expect("a device"), said });
    let device: Arc<dyn Device> = Arc::clone(&watched) as Arc<dyn Device>;
    let cases = [(); 2].map(|()| Case::new(&device, Tier::Steps).expect("a model on the device"));
    let begun = Barrier::new(2);
    locked(&watched.said).clear();
    std::thread::scope(|threads| {
        for case in &cases {
            threads.spawn(|| {
                begun.wait();
                let held = case.bind().expect("parameters");
                for question in [&questions()[0], &questions()[0], &questions()[5]] {
                    let ran = case.forward(&held, question, Mode::Train);
                    let mut batch = ran.expect("a batch").batch;
                    let bars = Cotangents { outputs: vec![None; 2], states: vec![None; 4], penalty: 1.0 };
                    let params = vec![None; case.params.len()];
                    let to = Gradients { params, inputs: vec![None; 2], states: vec![None; 4] };
                    // SAFETY: nothing is lent.
                    unsafe { batch.backward(&bars, &to) }.expect("a backward pass");
                }
            });
        }
    });
    let said = locked(&watched.said).clone();
    let blocks = 3 * (cases[0].outputs.len() + cases[0].states.len());
    assert_eq!(
        calls(&said),
        2 * (1 + 2 * 3 + blocks),
        "parameters, batches both ways, and places for results"
    );
    let others = said.iter().filter(|(thread, _)| *thread != said[0].0).count();
    assert!(0 < others && others < said.len(), "both threads have worked");
}
