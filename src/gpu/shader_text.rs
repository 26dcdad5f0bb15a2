//! Facts about a shader that are read from its text: the comment at its head, and its workgroup size.

use super::shader::{SHADERS, Shader};
use crate::error::{Error, Result};

/// Returns the comment at the head of a module of `shaders/`, without its slashes: in a family's main module, the formulas that it computes.
/// `None` for a module that does not exist.
pub fn module_head(module: &str) -> Option<String> {
    let (_, source) = SHADERS.iter().find(|(name, _)| *name == module)?;
    let lines = source.lines().map_while(|line| line.strip_prefix("//"));
    Some(lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

impl Shader {
    /// Returns the invocations of a workgroup along x, y and z.
    ///
    /// # Errors
    /// Fails like [`Self::source`]; [`Error::File`] naming the module, where the text has no such entry point or its size is not a constant.
    pub fn workgroup_size(&self) -> Result<[u32; 3]> {
        let source = self.source()?;
        let bad = |reason: String| Error::file(format!("shaders/{}.wgsl", self.module), reason);
        let start = entry_point(&source, self.entry).ok_or_else(|| bad(format!("no entry point `{}`", self.entry)))?;
        let attribute = "@workgroup_size(";
        let size = source[..start].rfind(attribute).and_then(|at| arguments(&source[at + attribute.len()..]));
        let size = size.ok_or_else(|| bad(format!("`{}` has no workgroup size", self.entry)))?;
        let mut sizes = [1; 3];
        for (size, text) in sizes.iter_mut().zip(size.split(',').filter(|text| !text.trim().is_empty())) {
            let value = ModuleConstants { source: &source, depth: 0 }.value(text);
            *size = value.ok_or_else(|| bad(format!("`{}` is not a constant", text.trim())))?;
        }
        Ok(sizes)
    }
}

/// Returns the offset of an entry point's `fn`.
fn entry_point(source: &str, name: &str) -> Option<usize> {
    let declared = format!("fn {name}(");
    source.match_indices(&declared).map(|(at, _)| at).find(|&at| at == 0 || source[..at].ends_with(['\n', ' ']))
}

/// Returns the text up to the bracket that closes an argument list.
fn arguments(text: &str) -> Option<&str> {
    let mut open = 1;
    let end = text.find(|c| {
        open += i32::from(c == '(') - i32::from(c == ')');
        open == 0
    })?;
    Some(&text[..end])
}

/// Longest chain of constants that are defined by others.
const MOST_DEPTH: usize = 16;

/// Module-scope constants of a linked source.
#[derive(Clone, Copy)]
struct ModuleConstants<'a> {
    source: &'a str,
    depth: usize,
}

impl ModuleConstants<'_> {
    /// Evaluates an expression of whole numbers, constants, brackets and `+ - * /`.
    fn value(self, text: &str) -> Option<u32> {
        let mut terms = ConstExpression { constants: self, rest: text.trim() };
        let value = terms.sum()?;
        terms.rest.is_empty().then_some(value)
    }

    /// Returns a constant's value, or the default of an `override`.
    fn named(self, name: &str) -> Option<u32> {
        if self.depth == MOST_DEPTH {
            return None;
        }
        let defined = self.source.lines().find_map(|line| {
            let rest = line.strip_prefix("const ").or_else(|| line.strip_prefix("override "))?;
            let rest = rest.strip_prefix(name)?;
            let (declared, value) = rest.split_once('=')?;
            (declared.trim().is_empty() || declared.starts_with(':')).then(|| value.split(';').next())?
        })?;
        ModuleConstants { depth: self.depth + 1, ..self }.value(defined)
    }
}

/// Rest of an expression that is being evaluated.
struct ConstExpression<'a> {
    constants: ModuleConstants<'a>,
    rest: &'a str,
}

impl ConstExpression<'_> {
    fn take(&mut self, operators: [char; 2]) -> Option<char> {
        let found = self.rest.chars().next().filter(|c| operators.contains(c))?;
        self.rest = self.rest[1..].trim_start();
        Some(found)
    }

    fn sum(&mut self) -> Option<u32> {
        let mut sum = self.product()?;
        while let Some(operator) = self.take(['+', '-']) {
            let next = self.product()?;
            sum = if operator == '+' { sum.checked_add(next) } else { sum.checked_sub(next) }?;
        }
        Some(sum)
    }

    fn product(&mut self) -> Option<u32> {
        let mut product = self.operand()?;
        while let Some(operator) = self.take(['*', '/']) {
            let next = self.operand()?;
            product = if operator == '*' { product.checked_mul(next) } else { product.checked_div(next) }?;
        }
        Some(product)
    }

    fn operand(&mut self) -> Option<u32> {
        if self.take(['(', '(']).is_some() {
            let value = self.sum()?;
            self.take([')', ')'])?;
            return Some(value);
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        match word.chars().next()?.is_ascii_digit() {
            true => word.trim_end_matches(['u', 'i']).parse().ok(),
            false => self.constants.named(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_has_the_formula_and_no_code() {
        let head = module_head("rmsnorm").unwrap();
        assert!(head.starts_with("y[t,i] = x[t,i]·(w[i] + offset)·r[t];") && head.contains("d_w[i] = "), "{head}");
        assert!(!head.contains("import") && !head.contains("//"), "{head}");
        assert_eq!(module_head("nothing"), None);
        for (name, _) in SHADERS.iter().filter(|(name, _)| !name.starts_with("shared/")) {
            assert!(module_head(name).unwrap().len() > 20, "shaders/{name}.wgsl has no comment at its head");
        }
    }

    #[test]
    fn expressions_are_evaluated_and_others_refused() {
        let source = "const A = 6u;\noverride B: u32 = A * 2u; // twice\nconst LONGER = 1u;\nconst C = C;\n";
        let value = |text| ModuleConstants { source, depth: 0 }.value(text);
        assert_eq!(value("64"), Some(64));
        assert_eq!(value("B / (A - 2u) + 1u"), Some(4));
        for refused in ["LONG", "C", "A %  2u", "A +", "(A", "", "A - B"] {
            assert_eq!(value(refused), None, "{refused}");
        }
    }
}
