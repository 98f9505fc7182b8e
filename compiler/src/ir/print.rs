//! The step IR as text.
