//! Launchers that start several processes, known by variables of the environment.

/// Variables that have the number of processes, of launchers that start programs of MPI.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];
/// Variable that has the rank where PMIx started the process. There is none for the number of processes.
const PMIX_RANK: &str = "PMIX_RANK";
/// Variable that has the number of tasks of a Slurm job or step. A batch script has it, too, in which a program is one process.
const SLURM_SIZE: &str = "SLURM_NTASKS";
/// Variables that have the rank on its machine.
const LOCAL_RANKS: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"];

/// Variables that have the rank.
const RANKS: [&str; 5] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", PMIX_RANK, "SLURM_PROCID"];

/// Several processes, as the environment tells of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// Variable that tells.
    variable: &'static str,
    /// Number of processes; `None` where it is not told.
    n: Option<usize>,
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn number(environment: Environment<'_>, name: &str) -> Option<usize> {
    environment(name)?.trim().parse().ok()
}

/// Returns the rank; `None` where no launcher tells.
pub fn rank(environment: Environment<'_>) -> Option<usize> {
    RANKS.iter().find_map(|name| number(environment, name))
}

/// Returns the rank on this machine; `None` where no launcher tells.
pub fn local_rank(environment: Environment<'_>) -> Option<usize> {
    LOCAL_RANKS.iter().find_map(|name| number(environment, name))
}

impl Launched {
    /// Finds a launcher that started more than one process; `None` where there is none, or it started one.
    pub fn find(environment: Environment<'_>) -> Option<Self> {
        let of = |variable| Some(Self { variable, n: Some(number(environment, variable)?) });
        let slurm = || of(SLURM_SIZE);
        let pmix = || number(environment, PMIX_RANK).map(|_| slurm().unwrap_or(Self { variable: PMIX_RANK, n: None }));
        let found = SIZES.into_iter().find_map(of).or_else(pmix).or_else(slurm)?;
        (found.n != Some(1)).then_some(found)
    }

    /// Tells whether a launcher of MPI started this process, and not a batch script of Slurm's.
    pub fn is_by_mpi(&self) -> bool {
        self.variable != SLURM_SIZE && self.n.is_some()
    }

    /// Tells whether MPI may have `n` ranks, by the launcher.
    pub fn may_be(&self, n: usize) -> bool {
        n > 1 || self.n.is_none()
    }

    /// Says why this process must not work alone.
    pub fn refusal(&self, has_mpi: bool) -> String {
        let Self { variable, n } = self;
        let said = n.map_or(format!("{variable} says that several"), |n| format!("{variable} says that {n}"));
        let advice = match (has_mpi, *variable == SLURM_SIZE) {
            (false, false) => "build it with `--features mpi` (docs/several-gpus.md), or start one process",
            (false, true) => {
                "build it with `--features mpi` (docs/several-gpus.md), or set SLURM_NTASKS=1 where one process is meant"
            }
            (true, false) => "the launcher is another MPI's than the one that the program is linked with",
            (true, true) => "start it with `srun` or `mpirun`, or set SLURM_NTASKS=1 where one process is meant",
        };
        let alone = if has_mpi { "MPI knows of one" } else { "this program is built without MPI" };
        format!("{said} processes were started, but {alone}, so each would do all of the work: {advice}")
    }

    /// Says that a command's work is not divided among ranks.
    pub fn not_divided(&self, command: &str) -> String {
        let n = self.n.map_or("several".to_string(), |n| n.to_string());
        format!(
            "{} says that {n} processes were started, but only `sft`, `train`, `score`, `grad`, `study` and `evaluate` divide their work: start `{command}` once",
            self.variable
        )
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Option<Launched> {
        Launched::find(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("SLURM_NTASKS", "1")]), None);
        for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"] {
            assert_eq!(found(&[(name, "4")]), Some(Launched { variable: name, n: Some(4) }), "{name}");
        }
        // One process of `mpirun` in an allocation of Slurm's for four.
        assert_eq!(found(&[("SLURM_NTASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "1")]), None);
        let by_srun = found(&[("PMIX_RANK", "0"), ("SLURM_NTASKS", "3")]).unwrap();
        assert_eq!(by_srun.n, Some(3));
        let unknown = found(&[("PMIX_RANK", "0")]).unwrap();
        assert!(unknown.n.is_none() && unknown.may_be(1) && unknown.may_be(2));
        assert!(!by_srun.may_be(1) && by_srun.may_be(3));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let said = |name, has_mpi| found(&[(name, "2")]).unwrap().refusal(has_mpi);
        assert!(said("PMI_SIZE", false).starts_with("PMI_SIZE says that 2 processes were started"));
        assert!(said("PMI_SIZE", false).contains("--features mpi"));
        assert!(said("OMPI_COMM_WORLD_SIZE", true).contains("MPI knows of one"));
        assert!(said("SLURM_NTASKS", true).contains("srun"));
    }
}
