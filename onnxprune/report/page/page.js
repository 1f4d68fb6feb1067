"use strict";
// Shows the JSON of a report, of a sweep or of a comparison.

const bytes = (n) => (n < 1000 ? `${n} B` : `${short(n).replace("k", " k").replace("M", " M").replace("G", " G")}B`);
const share = (part, of) => (of ? hundredth(part / of) : "-");

/** Options whose numbers mean more than a number. */
const MEANINGS = {
  memory: (n) => (n ? `${brief(n / 2 ** 30)} GiB` : "default"), threads: (n) => (n ? String(n) : "default"), round_to: (n) => (n ? String(n) : "auto"),
};
const option = ([name, value]) => [name, MEANINGS[name]?.(value) ?? said(value)];

/** How one value of `options` and the like is written. */
function said(value) {
  if (value === null || value === "") return "-";
  if (Array.isArray(value)) return value.length ? value.map(said).join(", ") : "-";
  if (typeof value === "object") return Object.entries(value).map(([k, v]) => `${k}: ${said(v)}`).join("; ") || "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" && !Number.isInteger(value) ? exact(value) : String(value);
}

function section(title, lead, ...children) {
  page.append(el("section", {}, el("h2", {}, title), lead && el("p", { class: "soft" }, lead), ...children));
}

/** A figure on a card. Its lines are cut where they are too long for it; the whole is said where the mouse rests. */
function figure(label, value, note, kept) {
  const meter = el("i"), line = (tag, text) => el(tag, { title: text }, text);
  if (kept != null) meter.style.width = `${Math.min(100, 100 * kept)}%`;
  return el("div", { class: "figure" }, line("span", label), line("b", value), line("span", note),
    kept == null ? null : el("div", { class: "meter" }, meter));
}
const left = (label, after, before, write) =>
  figure(label, share(after, before), `${write(after)} of ${write(before)}`, before ? after / before : null);
const costs = ({ before, after }) => [left("parameters", after.parameters, before.parameters, whole),
  left("MACs", after.macs, before.macs, amount), left("file size", after.bytes, before.bytes, bytes)];

/** How a metric of this unit is written, as the terminal does. */
const written = (unit) => (unit === "share" ? d3.format(".2%") : (n) => `${exact(n)} ${unit}`.trim());
const LESS = (found) => (found.higher_is_better ? "" : ", less is better");

/** What was proven, in the words of the terminal. */
function proven(proof) {
  const equal = (error) => (error ? `equal within ${d3.format(".1e")(error)}` : "exactly equal");
  const at = proof.sizes.length ? proof.sizes.join("; ") : `batch ${proof.batches.join(", ")}`;
  const parts = [`${whole(proof.couplings)} couplings agree`,
    `outputs are ${equal(proof.error)} (allowed ${d3.format(".0e")(proof.tolerance)}) beside the original without the removed units, at ${at} on ${proof.providers.join(", ")}${proof.blocks > 1 ? `, run in ${proof.blocks} pieces` : ""}`,
    proof.slices ? `${whole(proof.slices)} parameters are slices of the original's` : null, proof.slices ? `${whole(proof.tensors)} tensors inside agree` : null,
    proof.redrawn == null ? null : `${equal(proof.redrawn)} with weights drawn anew`,
    ...proof.uncompared.map((output) => `not compared: ${output}`), ...proof.notes];
  return parts.filter((part) => part).join("; ");
}

/** The inputs that were run, and what became of the weights. */
function story({ reconstruction: told, finetune: tuned }) {
  const errors = told?.output_error;
  return [
    ["Inputs used", told?.inputs ? `${told.inputs}${told.samples ? `, ${whole(told.samples)} samples` : ""}${told.diversity == null ? "" : `, diversity ${exact(told.diversity)}`}` : "none: weights alone decided"],
    ["Refitted", errors && !told.failed ? `${told.layers.length} layers; output error on ${told.held_out_batches ? "held-out inputs" : "what it was fitted to, for nothing could be held out,"} ${exact(errors.refitted)} (as sliced ${exact(errors.sliced)}, by weights alone ${said(errors.fast)})${told.fell_back ? "; this was worse than weights alone, so theirs was taken" : ""}` : told?.failed ?? (told?.merged == null ? null : `${whole(told.merged)} removed units were merged into kept ones`)],
    ["Fine-tuned", !tuned ? null : tuned.skipped ?? `${whole(tuned.steps)} steps on ${tuned.inputs}; on held-out inputs loss ${exact(tuned.loss.after)} (before ${exact(tuned.loss.before)}), output error ${exact(tuned.output_error.after)} (${exact(tuned.output_error.before)})${tuned.accepted ? "" : "; this was no better, so the weights stay as they were"}`],
  ];
}

const ROLES = { model: "model", pruned: "written to", plan: "plan", calib: "inputs", validate: "measured on" };

/** Where the page comes from: command, files, date. */
const origin = () => [
  ["Command", data.command && el("code", {}, ...data.command.split(" ").map((word) => el("span", { class: "item" }, `${word} `)))],
  ["Files", data.files && Object.keys(data.files).length ? Object.entries(ROLES).filter(([role]) => data.files[role]).map(([role, word]) => `${word} ${data.files[role]}`).join("; ") : null],
  ["Date", data.date],
];

/** Quality, and how near the answers are, on cards. */
function measured(quality, was) {
  const { metric, unit, before, after, fidelity, interval, drop } = quality, write = written(unit);
  const worse = (quality.higher_is_better ? -1 : 1) * (unit === "share" ? 100 : 1), points = d3.format(unit === "share" ? "+.2f" : "+.3~g");
  const ends = interval && d3.sort(interval.map((x) => worse * x)).map(points), word = unit === "share" ? "points" : unit;
  const change = `${points(worse * drop)}${word && `\u00a0${word}`}${ends ? ` (${ends.join("\u00a0to\u00a0")})` : ""}`;
  return [metric === "snr" ? null : figure(metric, write(after), `${was} ${write(before)}, ${change}${LESS(quality)}`),
    figure("fidelity", `${fidelity.snr.toFixed(1)} dB`, `agreement ${d3.format(".2%")(fidelity.agreement)}, cosine ${d3.format(".4f")(fidelity.cosine)}`)];
}

function latency(times) {
  if (!times) return null;
  const [was, is] = [times.before, times.after].map((t) => t.median ?? t);
  const how = times.speedup ? `measured, ${times.threads ? whole(times.threads) : "default"} threads` : "predicted";
  return figure("speed", `${(was / is).toFixed(2)}×`, `${brief(is)} of ${brief(was)} ms, ${how}`, is / was);
}

const cards = (...figures) => page.append(el("div", { class: "figures" }, ...figures.flat()));

/** Channels, or so many heads or groups of a convolution of so many channels each. */
function kind(group) {
  const units = group.rows ? `${group.rows} ${group.kind === "head" ? "heads" : "groups"} x ${group.prunable / group.rows}` : group.kind;
  return group.crosses_norm ? `${units}, crosses a norm` : units;
}

/** What had to hold, and does. */
function held(gates) {
  const asked = Object.entries(gates).filter(([name, value]) => name !== "gate" && value != null).map(([name, value]) => `--${name.replace("_", "-")} ${exact(value)}`);
  const sure = gates.gate === "interval" ? " at the worse ends of the intervals" : "";
  return `${asked.join(", ")} held${sure}`;
}

function showReport() {
  const { proof, validation, reconstruction: refit, groups, frozen } = data;
  cards(costs(data), validation ? measured(validation, "was") : [], latency(data.latency?.measured ?? data.latency?.predicted));
  page.append(facts([
    ...(validation?.failed ?? []).map((gate) => ["Gate failed", el("span", { class: "alarm" }, gate)]),
    ...[...data.warnings, ...(validation?.warnings ?? [])].map((warning) => ["Warning", el("span", { class: "alarm" }, warning)]),
    ["Gates", validation?.gates && !validation.failed.length && held(validation.gates)],
    ...origin(),
    ["Measured on", validation && `${whole(validation.samples)} samples of ${validation.data}`],
    ["Proof", proven(proof)], ...story(data),
    ["Search", data.search && `--ratio ${exact(data.search.ratio)} is the ${data.search.max_latency ? "smallest" : "largest"} of ${data.search.tried.length} tried that ${data.search.max_latency ? `takes at most ${exact(data.search.max_latency)} ms` : "holds"}${data.search.command ? `; without the search: ${data.search.command}` : ""}`],
    ...data.notes.map((note) => ["Note", note]),
  ]));
  if (groups.length) section("Widths", "Every group is one width that all its layers share: how many of its units (channels, neurons, heads) are left, and how many it had.",
    widths(groups), key([ACCENT, "kept"], [PALE, "removed"]));
  if (data.layers.length) section("Layers", "The model, layer by layer, and what flows between: the width of each before and after. Choose one for its group, its weights and why it stays.",
    ...layerGraph(data.layers), key([ACCENT, "kept"], [PALE, "removed"]));
  if (data.curves.length) section("Sensitivity", "What removing a share of one set of units is expected to cost: the error of the layers that read it, times the measured part of it that reaches the outputs. Point at a curve for its group.",
    ...curves(data.curves));
  const names = new Map(d3.zip(groups, apart(groups, (g) => g.name, (g) => `${whole(g.units)} units`)));
  section("Groups", null, table(groups, [
    ["group", (g) => names.get(g)], ["layers", (g) => g.layers.length, whole], ["units", (g) => g.units, whole],
    ["prunable", (g) => g.prunable, whole], ["kept", (g) => g.kept, whole], ["kept share", (g) => g.kept / g.units, hundredth],
    ["parameters", (g) => g.parameters, whole], ["MACs", (g) => g.macs, whole],
    ["kind", kind],
  ], "groups"));
  if (frozen.length) section("Frozen", "What stays, and why.", table(frozen, [
    ["reason", (f) => f.reason], ["operator", (f) => f.op_type], ["node", (f) => f.node], ["parameter", (f) => f.parameter],
    ["axis", (f) => f.axis, whole], ["units", (f) => f.units, whole],
  ], "axes"));
  if (refit?.layers?.length) section("Refitted layers", "Relative error of each layer on held-out inputs, with sliced and with refitted weights.", table(refit.layers, [
    ["layer", (l) => l.layer], ["error before", (l) => l.before, exact], ["error after", (l) => l.after, exact], ["ridge", (l) => l.ridge, exact],
  ], "layers"));
}

function showSweep() {
  const done = data.points.filter((point) => point.error == null), write = written(data.unit);
  const failed = data.points.length - done.length, percent = data.unit === "share";
  const metric = { write, percent, label: `${data.metric} (${percent ? "%" : data.unit || "in its own unit"}${LESS(data)})` };
  const on = (point) => Object.keys(data.fronts).filter((cost) => data.fronts[cost].includes(point.name)).join(", ");
  cards(figure("points", whole(done.length), failed ? `${whole(failed)} more failed` : "none failed"),
    figure(`${data.metric}, dense`, write(data.dense.metric), `on ${data.data}`),
    figure("parameters, dense", amount(data.dense.parameters), bytes(data.dense.bytes)),
    figure("MACs, dense", amount(data.dense.macs), "of one sample"));
  page.append(facts([...data.warnings.map((warning) => ["Warning", el("span", { class: "alarm" }, warning)]), ...origin(), ["Measured on", data.data]]));
  if (done.length) section("Pareto fronts", "Filled: no other point is both cheaper and better. The numbers are ratios.",
    el("div", { class: "charts" }, ...Object.entries(data.fronts).map(([cost, names]) => front(done, names, cost, data.dense, metric))));
  const kept = (cost) => (point) => (point.error == null ? point[cost] / data.dense[cost] : null);
  section("Points", null, table(data.points, [
    ["criterion", (p) => p.criterion], ["ratio", (p) => p.ratio, exact], ["parameters kept", kept("parameters"), hundredth],
    ["MACs kept", kept("macs"), hundredth], ["file size", (p) => p.bytes, bytes], [data.metric, (p) => p.metric, write],
    ...("latency" in data.fronts ? [["latency, ms", (p) => (p.latency == null ? null : 1000 * p.latency), exact]] : []),
    ["seconds", (p) => p.seconds, d3.format(".1f")], ["on the front of", on], ...(failed ? [["error", (p) => p.error ?? ""]] : []),
  ], "points"));
}

function showComparison() {
  cards(costs(data), measured(data.quality, "A has"), latency(data.latency?.measured ?? data.latency));
  page.append(facts([...data.quality.failed.map((gate) => ["Gate failed", el("span", { class: "alarm" }, gate)]),
    ...data.quality.warnings.map((warning) => ["Warning", el("span", { class: "alarm" }, warning)]), ...origin(), ["Measured on", `${whole(data.quality.samples)} samples of ${data.quality.data}`]]));
}

const KINDS = { report: ["Pruned by onnxprune", showReport], sweep: ["Pruned in many ways by onnxprune", showSweep],
  compared: ["Compared by onnxprune: B beside A", showComparison] };
const GRID = new Set(["ratio", "criterion"]);  // of each point, not of a sweep
const [what, show] = KINDS[data.kind], seconds = Object.entries(data.seconds ?? {});
document.title = `${data.title} - onnxprune`;
page.append(el("h1", {}, data.title), el("div", { class: "soft" }, what), el("p", { class: "lead" }, (data.headline ?? "").replaceAll(" %", "\u00a0%")));
show();
section("Environment", null, el("div", { class: "columns" },
  el("div", {}, el("h3", {}, "Versions"), facts(Object.entries(data.versions)),
    ...(seconds.length ? [el("h3", { class: "next" }, "Seconds"), facts(seconds.map(([k, v]) => [k, d3.format(".2f")(v)]))] : [])),
  data.options && el("div", {}, el("h3", {}, "Options"), facts(Object.entries(data.options).filter(([k]) => !(data.kind === "sweep" && GRID.has(k))).map(option)))));
page.append(el("footer", {}, `onnxprune ${data.versions.onnxprune}. Charts by Observable Plot and D3 (ISC licence).`));
fit();
