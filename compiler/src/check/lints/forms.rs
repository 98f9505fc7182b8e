//! Matrices that a spec wants to keep as events, and that cannot be kept so.

use crate::check::codes;
use crate::model::{Model, Prefer};
use crate::passes::events;
use grammar::diag::Diagnostic;

pub(super) fn check(model: &Model, found: &mut Vec<Diagnostic>) {
    if model.states.iter().all(|s| s.prefer != Prefer::Events) {
        return;
    }
    let refused = events::legality(model, Prefer::Auto).refused;
    for (s, why) in refused {
        let state = &model.states[s.index()];
        if state.prefer == Prefer::Events {
            let name = &state.name;
            found.push(
                Diagnostic::error(
                    codes::BAD_DECLARATION,
                    format!("`{name}` cannot be kept as events"),
                    state.span,
                    why,
                )
                .help("leave the word `events` out")
                .note(
                    "events can stand for a matrix that starts at zero in every episode, takes up sums of \
                     products of vectors, and is read by products with vectors",
                ),
            );
        }
    }
}
