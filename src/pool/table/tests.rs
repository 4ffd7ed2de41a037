//! The job table against a map: a ticket names one job and never another.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Clone, Debug)]
enum Step {
    Insert,
    /// A job that is never anywhere: rejected at once.
    InsertNowhere,
    Remove(usize),
}

#[test]
fn every_place_is_kept() {
    let mut table = Table::new();
    let job = table.insert(0, 0, Terms::default(), 0).job;
    let last = (WORKERS_MAX - 1) as u32;
    for place in [
        Place::Queue(u64::MAX),
        Place::FrontInSlot(last, 7),
        Place::FrontOwned,
        Place::Slot(last, 1 << 40),
        Place::Aside,
        Place::Ending,
        Place::Nowhere,
    ] {
        table.set_place(job, place);
        assert_eq!(table.place(job), place);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_ticket_never_names_another_job(
        steps in prop::collection::vec(
            prop_oneof![
                5 => Just(Step::Insert),
                1 => Just(Step::InsertNowhere),
                5 => any::<usize>().prop_map(Step::Remove),
            ],
            1..200,
        ),
    ) {
        let mut table = Table::new();
        let mut live: Vec<(Ticket, JobIndex, u64)> = Vec::new();
        let mut dead: Vec<Ticket> = Vec::new();
        let (mut tag, mut most) = (0, 0);
        for step in steps {
            match step {
                Step::Insert | Step::InsertNowhere => {
                    tag += 1;
                    let (number, timeout_ns) = (tag as u32, if tag % 2 == 0 { tag } else { 0 });
                    let label = if timeout_ns == 0 {
                        let label = table.insert_unfilled(number, tag, number + 1);
                        table.recall(label);
                        label
                    } else {
                        table.insert(number, tag, Terms { timeout_ns, ..Terms::default() }, number + 1)
                    };
                    let job = label.job;
                    prop_assert_eq!((label, label.ticket()), (table.label(job), table.ticket(job)));
                    let r = table.get(job);
                    prop_assert_eq!((r.handler, r.tag, r.terms.timeout_ns, r.batch), (number, tag, timeout_ns, number + 1));
                    // Nothing of the record's last job is left.
                    prop_assert!(r.charges == 0 && r.owned.is_none() && table.place(job) == Place::Nowhere);
                    let ticket = table.ticket(job);
                    most = most.max(table.len());
                    if let Step::InsertNowhere = step {
                        prop_assert_eq!(table.find(ticket), None);
                        table.remove(job);
                        dead.push(ticket);
                    } else {
                        table.set_place(job, Place::Queue(tag));
                        let r = table.get_mut(job);
                        r.charges = 2;
                        let header = Header {
                            payload_size: 0,
                            header_block_size: 0,
                            kind: crate::frame::Kind::Job,
                            flags: 0,
                            id: 0,
                            code: 0,
                            extra: 0,
                        };
                        r.owned = Some(Box::new(Owned { header, payload: Box::new([]), large: false, aside: false }));
                        // What is known already is not forgotten.
                        table.recall(label);
                        prop_assert!(table.get(job).charges == 2 && table.get(job).owned.is_some());
                        live.push((ticket, job, tag));
                    }
                }
                Step::Remove(which) => {
                    if !live.is_empty() {
                        let (ticket, job, _) = live.swap_remove(which % live.len());
                        table.remove(job);
                        dead.push(ticket);
                    }
                }
            }
            prop_assert_eq!(table.len(), live.len());
            for &(ticket, job, tag) in &live {
                prop_assert_eq!(table.find(ticket), Some(job));
                prop_assert_eq!(table.ticket(job), ticket);
                prop_assert_eq!((table.get(job).tag, table.place(job)), (tag, Place::Queue(tag)));
            }
            for &ticket in &dead {
                prop_assert_eq!(table.find(ticket), None, "a ticket that has risen from the dead");
            }
            let listed: HashMap<u32, u64> = table.jobs().map(|job| (job.0, table.get(job).tag)).collect();
            let expected: HashMap<u32, u64> = live.iter().map(|&(_, job, tag)| (job.0, tag)).collect();
            prop_assert_eq!(listed, expected);
        }
        prop_assert!(table.seats.len() <= most, "it grows only when more jobs are outstanding than ever before");
    }
}

#[test]
fn generations_wrap() {
    let mut table = Table::new();
    let job = table.insert(0, 0, Terms::default(), 0).job;
    table.set_place(job, Place::FrontOwned);
    table.seats[job.0 as usize].generation = u32::MAX;
    let old = table.ticket(job);
    table.remove(job);
    let job = table.insert(0, 0, Terms::default(), 0).job;
    table.set_place(job, Place::FrontOwned);
    let new = table.ticket(job);
    assert_eq!((table.find(old), table.find(new), new.generation), (None, Some(job), 0));
}
