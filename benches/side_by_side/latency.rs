//! One file after another over a live connection: from the end of close() until it is visible on the
//! mirror, which it is only when it is whole.

use crate::Size;
use crate::rig::{Rig, bytes};
use crate::table::{Table, percentile};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_micros(200);

pub fn run(size: &Size, table: &mut Table) {
    for rtt in [0, 100].map(Duration::from_millis) {
        let rig = Rig::start(rtt);
        let times: Vec<Duration> = (0..size.single_files).map(|n| one(&rig, n)).collect();
        let goal = 3 * rtt + Duration::from_millis(50);
        for percent in [50, 99] {
            let what = format!(
                "close() to visible there, RTT {} ms, p{percent} of {}",
                rtt.as_millis(),
                times.len()
            );
            table.time(what, percentile(&times, percent), Some(goal));
        }
    }
}

fn one(rig: &Rig, n: usize) -> Duration {
    let name = format!("{n}.jpg");
    let mut file = File::create(rig.daemon.source().join(&name)).unwrap();
    file.write_all(&bytes(n as u64, 4096)).unwrap();
    drop(file);
    let start = Instant::now();
    rig.wait_for(&name, LOOK);
    start.elapsed()
}
