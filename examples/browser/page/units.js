// Numbers with units, short enough for a table.

const three = (x) => Number(x.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 3, maximumSignificantDigits: 3 });

function scaled(x, units, step) {
  let n = 0;
  while (x >= step && n < units.length - 1) {
    x /= step;
    n++;
  }
  return `${three(x)} ${units[n]}`;
}

/** Returns a time that is given in µs. */
export const duration = (us) => scaled(us, ["µs", "ms", "s"], 1000);

export const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB"], 1000);

/** Returns a number of floating-point operations. */
export const operations = (n) => scaled(n, ["", "k", "M", "G", "T"], 1000).trim();

export const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
