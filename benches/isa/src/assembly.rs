//! Listings of Mesa's compilers, line by line: AMD's by ACO's disassembler, Intel's by brw, NVIDIA's by NAK.

/// Compiler whose listing is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// RADV with ACO.
    Amd,
    /// ANV with brw.
    Intel,
    /// NVK with NAK.
    Nvidia,
}

/// Kind of memory that a load reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Buffers.
    Device = 0,
    /// Workgroup memory.
    Workgroup = 1,
}

/// Class of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Multiply-adds of a lane: their number.
    Multiply(usize),
    /// Product of matrices by a subgroup.
    Matrix,
    /// Other vector instruction.
    Vector,
    /// Load.
    Load(Memory),
    /// Stores, scalar instructions, branches, barriers, hints.
    Other,
}

/// Wait until at most `left` loads of a kind are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Kind of the loads.
    pub memory: Memory,
    /// Loads that may still be under way.
    pub left: usize,
}

/// Line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Beginning of a block, which branches name.
    Label(String),
    /// Instruction.
    Instruction {
        /// Its class.
        operation: Operation,
        /// Waits that it makes, before it does anything else.
        waits: Vec<Wait>,
        /// Label that it may branch to.
        target: Option<String>,
    },
}

/// Names that a driver gives its statistics.
pub struct StatisticNames {
    /// Registers of a lane.
    pub registers: &'static str,
    /// Spilled registers.
    pub spills: &'static str,
    /// Scratch memory of a lane.
    pub scratch: &'static str,
    /// Subgroups that fit.
    pub waves: &'static str,
    /// Instructions.
    pub instructions: &'static str,
}

impl Vendor {
    /// Returns the compiler of a device by its name.
    pub fn of_device(name: &str) -> Self {
        match name {
            _ if name.contains("Intel") => Self::Intel,
            _ if name.contains("RADV") || name.contains("AMD") => Self::Amd,
            _ => Self::Nvidia,
        }
    }

    /// Returns the names of the driver's statistics.
    pub fn statistics(self) -> StatisticNames {
        match self {
            Self::Amd => StatisticNames {
                registers: "VGPRs",
                spills: "Spilled VGPRs",
                scratch: "Scratch size",
                waves: "Subgroups per SIMD",
                instructions: "Instructions",
            },
            Self::Intel => StatisticNames {
                registers: "Max live registers",
                spills: "Spills",
                scratch: "Scratch Memory Size",
                waves: "Max dispatch width",
                instructions: "Instructions",
            },
            Self::Nvidia => StatisticNames {
                registers: "Number of GPRs",
                spills: "Spills to memory",
                scratch: "SLM size",
                waves: "Max warps/SM",
                instructions: "Instruction count",
            },
        }
    }

    /// Returns whether the waits of the listing are read.
    pub fn shows_waits(self) -> bool {
        self == Self::Amd
    }

    /// Returns the machine's listing among the texts of a pipeline.
    pub fn listing(self, texts: &[(String, String)]) -> &str {
        let is_listing = |title: &str| match self {
            Self::Amd => title == "Assembly",
            Self::Intel | Self::Nvidia => title.to_lowercase().contains("assembly"),
        };
        texts.iter().rfind(|(title, _)| is_listing(title)).map_or("", |(_, text)| text)
    }

    /// Reads a listing. Lines that are neither labels nor instructions are left out.
    pub fn parse(self, listing: &str) -> Vec<Line> {
        match self {
            Self::Amd => listing.lines().filter_map(amd).collect(),
            Self::Intel => intel_lines(listing).iter().filter_map(|line| intel(line)).collect(),
            Self::Nvidia => listing.lines().flat_map(nvidia).collect(),
        }
    }
}

fn plain(operation: Operation) -> Line {
    Line::Instruction { operation, waits: Vec::new(), target: None }
}

fn branch(target: &str) -> Line {
    Line::Instruction { operation: Operation::Other, waits: Vec::new(), target: Some(target.into()) }
}

// ------------------------------------------------------------------------------------------------------------------ AMD

fn amd(line: &str) -> Option<Line> {
    let code = line.split(';').next()?.trim();
    if let Some(label) = code.strip_suffix(':') {
        return Some(Line::Label(label.into()));
    }
    let name = code.split_whitespace().next()?;
    if name.starts_with("s_branch") || name.starts_with("s_cbranch") {
        return Some(branch(code.split_whitespace().last()?));
    }
    if name.starts_with("s_wait") {
        return Some(Line::Instruction { operation: Operation::Other, waits: amd_waits(code), target: None });
    }
    let starts = |names: &[&str]| names.iter().any(|n| name.starts_with(n));
    Some(plain(if starts(&["v_wmma", "v_swmmac"]) {
        Operation::Matrix
    } else if name.starts_with("v_") {
        match amd_multiplications(code) {
            0 => Operation::Vector,
            n => Operation::Multiply(n),
        }
    } else if starts(&["ds_load", "ds_read"]) {
        Operation::Load(Memory::Workgroup)
    } else if starts(&["buffer_load", "global_load", "flat_load", "scratch_load"]) {
        Operation::Load(Memory::Device)
    } else if starts(&["s_", "ds_", "buffer_", "global_", "flat_", "scratch_"]) {
        Operation::Other
    } else {
        return None;
    }))
}

/// Multiply-adds of a vector instruction: a packed one has two, a dual-issued one as many as its halves have.
fn amd_multiplications(code: &str) -> usize {
    let in_half = |half: &str| {
        let name = half.split_whitespace().next().unwrap_or_default();
        let (stem, n) = match name.strip_prefix("v_pk_") {
            Some(stem) => (stem, 2),
            None => (name.trim_start_matches("v_dual_").trim_start_matches("v_"), 1),
        };
        let multiplies = ["fma_", "fmac_", "fmaak_", "fmamk_", "mac_", "mad_f"].iter().any(|m| stem.starts_with(m));
        if multiplies { n } else { 0 }
    };
    code.split("::").map(|half| in_half(half.trim())).sum()
}

fn amd_waits(code: &str) -> Vec<Wait> {
    let mut waits = Vec::new();
    let mut add = |memory, left| waits.push(Wait { memory, left });
    // RDNA 2 and 3: s_waitcnt vmcnt(2) lgkmcnt(0). RDNA 4: s_wait_loadcnt 0x2, s_wait_dscnt 0x0, s_wait_loadcnt_dscnt 0x200.
    let counter = |name: &str| -> Option<usize> { code.split_once(name)?.1.split(')').next()?.trim().parse().ok() };
    let hexadecimal = |name: &str| -> Option<usize> {
        let rest = code.strip_prefix(name)?.trim();
        usize::from_str_radix(rest.strip_prefix("0x")?, 16).ok()
    };
    counter("vmcnt(").into_iter().for_each(|n| add(Memory::Device, n));
    counter("lgkmcnt(").into_iter().for_each(|n| add(Memory::Workgroup, n));
    hexadecimal("s_wait_loadcnt ").into_iter().for_each(|n| add(Memory::Device, n));
    hexadecimal("s_wait_dscnt ").into_iter().for_each(|n| add(Memory::Workgroup, n));
    if let Some(both) = hexadecimal("s_wait_loadcnt_dscnt ") {
        add(Memory::Device, both >> 8);
        add(Memory::Workgroup, both & 0x3f);
    }
    waits
}

// ---------------------------------------------------------------------------------------------------------------- Intel

/// Joins an instruction's further lines, which begin with a space, with its first.
fn intel_lines(listing: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for line in listing.lines() {
        match all.last_mut() {
            Some(last) if line.starts_with(' ') => last.push_str(line),
            _ => all.push(line.into()),
        }
    }
    all
}

const INTEL_VECTOR: [&str; 40] = [
    "add", "add3", "addc", "and", "asr", "avg", "bfe", "bfi1", "bfi2", "bfn", "bfrev", "cbit", "cmp", "cmpn", "csel",
    "dp4a", "fbh", "fbl", "frc", "lzd", "mac", "mach", "macl", "mad", "math", "mov", "movi", "mul", "not", "or",
    "rndd", "rnde", "rndz", "rol", "ror", "sel", "shl", "shr", "subb", "xor",
];

fn intel(line: &str) -> Option<Line> {
    let line = line.trim();
    if let Some(label) = line.strip_suffix(':') {
        return Some(Line::Label(label.into()));
    }
    // (+f0.0) mad(8) g1<1>F ...
    let code = if line.starts_with('(') { line.split_once(')')?.1.trim() } else { line };
    let name = code.split(['(', '.', ' ']).next()?;
    match name {
        "while" => {
            let target = code.split_once("JIP:").and_then(|(_, rest)| rest.split_whitespace().next());
            Some(branch(target.unwrap_or_default()))
        }
        "dpas" => Some(plain(Operation::Matrix)),
        // Integers have no F behind a register.
        "mad" | "mac" if code.contains(">F") || code.contains(">:F") || code.contains(":F") => {
            Some(plain(Operation::Multiply(1)))
        }
        "send" | "sendc" | "sends" => Some(plain(intel_message(&code.to_lowercase()))),
        name if INTEL_VECTOR.contains(&name) => Some(plain(Operation::Vector)),
        "sync" | "nop" | "if" | "else" | "endif" | "break" | "cont" | "halt" | "jmpi" | "goto" | "join" => {
            Some(plain(Operation::Other))
        }
        _ => None,
    }
}

fn intel_message(code: &str) -> Operation {
    let is_store =
        code.contains("store") || code.contains("write") || code.contains("barrier") || code.contains("fence");
    match (code.contains("slm"), is_store) {
        (_, true) => Operation::Other,
        (true, false) => Operation::Load(Memory::Workgroup),
        (false, false) => Operation::Load(Memory::Device),
    }
}

// --------------------------------------------------------------------------------------------------------------- NVIDIA

fn nvidia(line: &str) -> Vec<Line> {
    let code = line.split("//").next().unwrap_or_default().trim();
    if code.starts_with("block") {
        let label = code.split_whitespace().find(|word| word.starts_with('L'));
        return label.map(|name| Line::Label(name.trim_end_matches([':', '{']).into())).into_iter().collect();
    }
    // @p0 r1 = ffma r2 r3 r1
    let code = match code.split_once(' ') {
        Some((guard, rest)) if guard.starts_with('@') => rest.trim(),
        _ => code,
    };
    let is_uniform = code.starts_with("ur") || code.starts_with("up");
    let code = code.rsplit_once(" = ").map_or(code, |(_, right)| right.trim());
    let name = code.split([' ', '.']).next().unwrap_or_default();
    let is_name = name.len() > 1 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !is_name || name == "phi" {
        return Vec::new();
    }
    let is_shared = code.contains("shared") || name == "lds" || name == "ldsm";
    vec![match name {
        "bra" => branch(code.split_whitespace().last().unwrap_or_default()),
        "ffma" => plain(Operation::Multiply(1)),
        "hfma2" => plain(Operation::Multiply(2)),
        "hmma" | "imma" => plain(Operation::Matrix),
        "ld" | "lds" | "ldsm" | "ldg" | "ldl" if is_shared => plain(Operation::Load(Memory::Workgroup)),
        "ld" | "ldg" | "ldl" => plain(Operation::Load(Memory::Device)),
        "st" | "sts" | "stg" | "stl" | "atom" | "red" | "ldc" | "uldc" | "ldcu" | "bar" | "bsync" | "bssy" | "exit"
        | "break" | "bclear" | "bmov" | "warpsync" | "nop" | "membar" | "depbar" => plain(Operation::Other),
        _ if is_uniform => plain(Operation::Other),
        _ => plain(Operation::Vector),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(vendor: Vendor, line: &str) -> Operation {
        match vendor.parse(line).as_slice() {
            [Line::Instruction { operation, .. }] => *operation,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn amds_instructions_are_classed() {
        for (line, expected) in [
            ("\tv_fma_f32 v0, v1, v2, v3 ; d6130000", Operation::Multiply(1)),
            ("\tv_pk_fma_f16 v0, v1, v2, v3", Operation::Multiply(2)),
            ("\tv_dual_fmac_f32 v0, v1, v2 :: v_dual_fmac_f32 v3, v4, v5", Operation::Multiply(2)),
            ("\tv_dual_mov_b32 v0, v1 :: v_dual_fmac_f32 v3, v4, v5", Operation::Multiply(1)),
            ("\tv_mul_lo_u32 v0, v1, v2", Operation::Vector),
            ("\tv_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]", Operation::Matrix),
            ("\tds_load_2addr_b64 v[0:3], v4 offset0:1", Operation::Load(Memory::Workgroup)),
            ("\tds_read_b128 v[0:3], v4", Operation::Load(Memory::Workgroup)),
            ("\tds_load_u16 v0, v4", Operation::Load(Memory::Workgroup)),
            ("\tbuffer_load_b128 v[0:3], v4, s[0:3], 0 offen", Operation::Load(Memory::Device)),
            ("\tbuffer_store_b128 v[0:3], v4, s[0:3], 0 offen", Operation::Other),
            ("\ts_barrier", Operation::Other),
        ] {
            assert_eq!(operation(Vendor::Amd, line), expected, "{line}");
        }
        assert_eq!(Vendor::Amd.parse("BB3:"), [Line::Label("BB3".into())]);
        assert_eq!(Vendor::Amd.parse("\ts_cbranch_scc0 BB3 ; bf84"), [branch("BB3")]);
        let waits = |line| match Vendor::Amd.parse(line).remove(0) {
            Line::Instruction { waits, .. } => waits.iter().map(|w| (w.memory as usize, w.left)).collect::<Vec<_>>(),
            Line::Label(_) => panic!("{line}"),
        };
        assert_eq!(waits("\ts_waitcnt vmcnt(3) lgkmcnt(0)"), [(0, 3), (1, 0)]);
        assert_eq!(waits("\ts_wait_loadcnt 0xa"), [(0, 10)]);
        assert_eq!(waits("\ts_wait_loadcnt_dscnt 0x102"), [(0, 1), (1, 2)]);
        assert_eq!(waits("\ts_wait_kmcnt 0x0"), []);
    }
}
