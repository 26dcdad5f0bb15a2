// Section 6: describes this GPU and measures each kernel on it.

import { engine } from "./engine.js";
import { $, act, download, make, progress, status } from "./ui.js";

let caps;

export function show(found) {
  caps = found;
  const size = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const facts = {
    GPU: [found.name, found.driver].filter(Boolean).join(", ") || "not named by the browser",
    "Largest storage binding": size(found.max_binding_bytes),
    "Workgroup memory": `${found.workgroup_bytes / 1024} KiB`,
    Features: [found.f16 && "f16", found.subgroup && `subgroups ${found.subgroup.join(" to ")}`, found.timestamps && "timestamps"].filter(Boolean).join(", ") || "only the WebGPU minimum",
    "Kernel variants in use": found.variants.join(", ") || "baseline only",
    "Failed the self-test": found.switched_off.join(", ") || "none",
  };
  $("caps").replaceChildren(...Object.entries(facts).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
}

async function bench() {
  const names = await engine.kernels();
  status("Measuring the peak speed of this GPU…");
  const ceilings = await engine.ceilings();
  const results = { caps, ceilings, kernels: [] };
  const body = $("bench-table").tBodies[0];
  body.replaceChildren();
  $("bench-table").hidden = false;
  for (const [i, name] of names.entries()) {
    status(`Measuring kernel ${i + 1} of ${names.length}: ${name}`);
    progress(i / names.length);
    const measured = await engine.bench(name, ceilings);
    results.kernels.push(measured);
    const error = measured.error <= 1 ? measured.error.toFixed(2) : `${measured.error.toPrecision(2)} (wrong)`;
    const rows = measured.lines.length ? measured.lines : [null];
    rows.forEach((line, n) => {
      const numbers = line ? [line.us.toFixed(0), line.gb_s.toFixed(2), line.gflop_s.toFixed(2)] : ["", "", ""];
      const share = line ? Math.min(1, line.of_ceiling) : 0;
      const bar = line ? [make("span", { class: "bar", style: `width: ${(5 * share).toFixed(2)}rem` }), `${(100 * share).toFixed(0)} %`] : [];
      body.append(
        make("tr", measured.error > 1 ? { class: "bad" } : {}, make("td", {}, line ? `${name} ${line.case}` : name), make("td", { class: "n" }, n ? "" : error), ...numbers.map((x) => make("td", { class: "n" }, x)), make("td", { class: "share" }, ...bar)),
      );
    });
  }
  $("copy-bench").hidden = false;
  $("copy-bench").onclick = () => copy(JSON.stringify(results, null, 1));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    status("Copied to the clipboard");
  } catch {
    download("jointwise-gpu.json", new Blob([text]));
  }
}

export function setUp() {
  $("bench").onclick = () => act("Measuring…", bench);
}
