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
                    let label = table.insert(tag as u32, tag, tag * 2, tag as u32 + 1);
                    let job = label.job;
                    prop_assert_eq!((label, label.ticket()), (table.label(job), table.ticket(job)));
                    let r = table.get(job);
                    prop_assert_eq!((r.handler, r.tag, r.timeout_ns, r.batch), (tag as u32, tag, tag * 2, tag as u32 + 1));
                    // Nothing of the record's last job is left.
                    prop_assert!(r.charges == 0 && r.owned.is_none() && r.place == Place::Nowhere);
                    let ticket = table.ticket(job);
                    most = most.max(table.len());
                    if let Step::InsertNowhere = step {
                        prop_assert_eq!(table.find(ticket), None);
                        table.remove(job);
                        dead.push(ticket);
                    } else {
                        let r = table.get_mut(job);
                        (r.place, r.charges) = (Place::Queue(tag), 2);
                        let header = Header {
                            payload_size: 0,
                            header_block_size: 0,
                            kind: crate::frame::Kind::Job,
                            flags: 0,
                            id: 0,
                            code: 0,
                            extra: 0,
                        };
                        r.owned = Some(Box::new(Owned { header, payload: Box::new([]), large: false }));
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
                prop_assert_eq!((table.get(job).tag, table.get(job).place), (tag, Place::Queue(tag)));
            }
            for &ticket in &dead {
                prop_assert_eq!(table.find(ticket), None, "a ticket that has risen from the dead");
            }
            let listed: HashMap<u32, u64> = table.jobs().map(|job| (job.0, table.get(job).tag)).collect();
            let expected: HashMap<u32, u64> = live.iter().map(|&(_, job, tag)| (job.0, tag)).collect();
            prop_assert_eq!(listed, expected);
        }
        prop_assert!(table.records.len() <= most, "it grows only when more jobs are outstanding than ever before");
    }
}

#[test]
fn generations_wrap() {
    let mut table = Table::new();
    let job = table.insert(0, 0, 0, 0).job;
    table.get_mut(job).place = Place::FrontOwned;
    table.get_mut(job).generation = u32::MAX;
    let old = table.ticket(job);
    table.remove(job);
    let job = table.insert(0, 0, 0, 0).job;
    table.get_mut(job).place = Place::FrontOwned;
    let new = table.ticket(job);
    assert_eq!((table.find(old), table.find(new), new.generation), (None, Some(job), 0));
}
