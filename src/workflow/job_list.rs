//! Jobs: parts of a command's work that processes of their own do, such as those of a job array.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::error::{Error, Result, visible};

/// Most jobs that a message names.
const MOST_NAMED: usize = 5;

/// A part of a command's work that one process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedJob {
    /// Kind of work. Jobs of one stage may run at the same time.
    pub stage: &'static str,
    /// Name in lists and messages.
    pub name: String,
    /// Numbers of the jobs that must be done before.
    pub needs: Vec<usize>,
    /// Whether it is done.
    pub done: bool,
}

/// Jobs of a command, numbered from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobList(Vec<ListedJob>);

impl JobList {
    /// Adds a job, which needs earlier ones only. Returns its number.
    pub fn push(&mut self, job: ListedJob) -> usize {
        self.0.push(job);
        self.0.len()
    }

    /// Returns the number of the last job.
    pub fn last(&self) -> usize {
        self.0.len()
    }

    /// Returns the job with a number.
    ///
    /// # Errors
    /// [`Error::Flag`] where there is none.
    pub fn get(&self, number: usize) -> Result<&ListedJob> {
        number.checked_sub(1).and_then(|i| self.0.get(i)).ok_or_else(|| {
            Error::flag("job", format!("{number}: there are jobs 1 to {} (--list-jobs names them)", self.last()))
        })
    }

    /// Refuses a job whose needs are not done.
    ///
    /// # Errors
    /// [`Error::Flag`] naming what must be done first; those of [`Self::get`].
    pub fn check_needs(&self, number: usize) -> Result<()> {
        let job = self.get(number)?;
        let missing: Vec<usize> =
            job.needs.iter().copied().filter(|&need| self.get(need).is_ok_and(|job| !job.done)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let name = |&need: &usize| self.get(need).map_or(String::new(), |job| format!("{need} ({})", job.name));
        let mut names: Vec<String> = missing.iter().take(MOST_NAMED).map(name).collect();
        if missing.len() > MOST_NAMED {
            names.push(format!("{} more", missing.len() - MOST_NAMED));
        }
        let (is, how) = match missing.len() {
            1 => ("which is", format!("do it first, with --job {}", missing[0])),
            _ => ("which are", "do them first, each with --job".into()),
        };
        Err(Error::flag("job", format!("{number} ({}) needs {}, {is} not done: {how}", job.name, names.join(", "))))
    }

    /// Lists the job arrays that can be started one after the other: stage, and numbers as in Slurm's `--array`.
    pub fn arrays(&self) -> Vec<(&'static str, String)> {
        let mut first = 1;
        let array = |jobs: &[ListedJob]| {
            let range = first..first + jobs.len();
            first = range.end;
            (jobs[0].stage, ranges(&range.collect::<Vec<_>>()))
        };
        self.0.chunk_by(|a, b| a.stage == b.stage).map(array).collect()
    }

    /// Returns the list as text for a person, or as one JSON object.
    pub fn printed(&self, as_json: bool) -> String {
        if as_json { format!("{}\n", self.to_json()) } else { self.to_text() }
    }

    fn to_json(&self) -> Value {
        let job = |(i, job): (usize, &ListedJob)| json!({"job": i + 1, "stage": job.stage, "name": job.name, "needs": job.needs, "done": job.done});
        let array = |(stage, jobs): (&str, String)| json!({"stage": stage, "jobs": jobs});
        json!({
            "jobs": self.0.iter().enumerate().map(job).collect::<Vec<_>>(),
            "arrays": self.arrays().into_iter().map(array).collect::<Vec<_>>(),
        })
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let width = self.0.iter().map(|job| job.name.chars().count()).max().unwrap_or(0);
        for (i, job) in self.0.iter().enumerate() {
            let needs = if job.needs.is_empty() { String::new() } else { format!("needs {}", ranges(&job.needs)) };
            let done = if job.done { "done" } else { "" };
            let line = format!("{:>5}  {:<width$}  {done:<4}  {needs}", i + 1, visible(&job.name));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        let arrays: Vec<String> = self.arrays().into_iter().map(|(_, jobs)| jobs).collect();
        let _ = writeln!(text, "\njob arrays, one after the other: {}", arrays.join(", "));
        text
    }
}

/// Writes ascending numbers, neighbours as a range: `1,3-5`.
fn ranges(numbers: &[usize]) -> String {
    let range = |run: &[usize]| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    numbers.chunk_by(|a, b| a + 1 == *b).map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn list() -> JobList {
        let mut jobs = JobList::default();
        let mut push = |stage, name: &str, needs: &[usize], done| {
            jobs.push(ListedJob { stage, name: name.into(), needs: needs.into(), done });
        };
        push("sample", "sample", &[], true);
        push("judge", "conditional", &[1], false);
        push("train", "train/a", &[1, 2], false);
        push("train", "train/b", &[1], false);
        push("evaluate", "evaluate", &[3, 4], false);
        jobs
    }

    #[test]
    fn a_list_has_numbers_needs_and_arrays() {
        let text = list().printed(false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "    1  sample       done");
        assert_eq!(lines[2], "    3  train/a            needs 1-2");
        assert_eq!(lines.last(), Some(&"job arrays, one after the other: 1, 2, 3-4, 5"));
        let json: Value = serde_json::from_str(&list().printed(true)).unwrap();
        assert_eq!(
            json["jobs"][2],
            json!({"job": 3, "stage": "train", "name": "train/a", "needs": [1, 2], "done": false})
        );
        assert_eq!(json["arrays"][2], json!({"stage": "train", "jobs": "3-4"}));
        assert_eq!(ranges(&[1, 3, 4, 5, 9]), "1,3-5,9");
    }

    #[test]
    fn what_is_missing_is_named() {
        let jobs = list();
        assert!(jobs.check_needs(1).is_ok() && jobs.check_needs(2).is_ok() && jobs.check_needs(4).is_ok());
        let said = |number| jobs.check_needs(number).unwrap_err().to_string();
        assert_eq!(said(3), "--job: 3 (train/a) needs 2 (conditional), which is not done: do it first, with --job 2");
        assert!(said(5).contains("needs 3 (train/a), 4 (train/b), which are not done"), "{}", said(5));
        for number in [0, 6] {
            assert!(said(number).contains(&format!("{number}: there are jobs 1 to 5")), "{}", said(number));
        }
    }
}
