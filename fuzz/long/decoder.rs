//! One target, named by the environment, under libFuzzer.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sluicegate_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    sluicegate_fuzz::target(&name).expect("FUZZ_TARGET names one that there is")
});

fuzz_target!(|bytes: &[u8]| {
    (TARGET.check)(bytes);
});
