//! What a nursery is told and what it reports, on arbitrary bytes: no panic, and no record that means the same as another.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    seqpool::fuzzing::nursery_records(bytes);
    // Most lengths are refused at once: the same bytes as whole records.
    for record in bytes.chunks_exact(64) {
        seqpool::fuzzing::nursery_records(record);
    }
});
