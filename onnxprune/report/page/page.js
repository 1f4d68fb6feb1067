"use strict";
// Shows the JSON of a report. Text from the model is set as text, never parsed.

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const BOX = { fill: "var(--paper)", stroke: "var(--pale)", lineHeight: 1.4, lineWidth: 40, textPadding: 10 };
const ACCENT = "var(--accent)", PALE = "var(--pale)", SOFT = "var(--soft)";

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
  made.append(...children.filter((child) => child != null));
  return made;
}

const whole = d3.format(","), short = d3.format(".3~s"), exact = d3.format(".4~g"), brief = d3.format(".3~g"), hundredth = d3.format(".1%");
const bytes = (n) => (n < 1000 ? `${n} B` : `${short(n).replace("k", " k").replace("M", " M").replace("G", " G")}B`);
const amount = (n) => short(n).replace(/([kMGT])$/, " $1");
const share = (part, of) => (of ? hundredth(part / of) : "-");
const clip = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);

/** Text that breaks at the joints of a name, and nowhere else. */
function jointed(text) {
  const parts = text.split(/(?<=[./_:])/);
  return parts.flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

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

function facts(entries) {
  const shown = entries.filter(([, value]) => value != null);
  return el("dl", { class: "facts" }, ...shown.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
}

function section(title, lead, ...children) {
  page.append(el("section", {}, el("h2", {}, title), lead && el("p", { class: "soft" }, lead), ...children));
}

function figure(label, value, note, kept) {
  const meter = el("i");
  if (kept != null) meter.style.width = `${Math.min(100, 100 * kept)}%`;
  return el("div", { class: "figure" }, el("span", {}, label), el("b", {}, value), el("span", {}, note),
    kept == null ? null : el("div", { class: "meter" }, meter));
}

/** A table that sorts by any column and keeps the rows that hold the text of its search field.
    columns: [title, row => value, how a value is written (numbers only)]. */
function table(rows, columns, noun) {
  const body = el("tbody"), count = el("span"), search = el("input", { type: "search", placeholder: "Filter" });
  search.setAttribute("aria-label", `Filter ${noun}`);
  const heads = columns.map(([title, , write], i) => {
    const button = el("button", { type: "button" }, title);
    button.addEventListener("click", () => sort(i));
    return el("th", write ? { class: "number" } : {}, button);
  });
  let shown = rows.map((row) => columns.map(([, value]) => value(row)));
  const lines = new Map(shown.map((cells) => [cells, el("tr", {}, ...cells.map((cell, i) => {
    const write = columns[i][2];
    return el("td", write ? { class: "number" } : {}, ...(cell == null ? ["-"] : write ? [write(cell)] : jointed(String(cell))));
  }))]));

  function sort(i) {
    const down = heads[i].getAttribute("aria-sort") === (columns[i][2] ? "descending" : "ascending");
    const descending = Boolean(columns[i][2]) !== down;
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[i].setAttribute("aria-sort", descending ? "descending" : "ascending");
    shown = d3.sort(shown, (a, b) => (descending ? d3.descending : d3.ascending)(a[i], b[i]));
    draw();
  }
  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const fits = shown.filter((cells) => cells.join("\n").toLowerCase().includes(wanted));
    body.replaceChildren(...fits.map((cells) => lines.get(cells)));
    count.textContent = wanted ? `${fits.length} of ${rows.length} ${noun}` : `${rows.length} ${noun}`;
  }
  search.addEventListener("input", draw);
  draw();
  return el("div", {}, el("div", { class: "tools" }, count, search),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)));
}

const key = (...entries) => el("div", { class: "key" }, ...entries.map(([colour, text]) => {
  const square = el("i");
  square.style.background = colour;
  return el("span", {}, square, text);
}));

function chart(options, ...after) {
  return el("figure", {}, Plot.plot({ style: { background: "none", fontSize: "12px" }, ...options }), ...after);
}

function widths(groups) {
  const names = groups.map((group) => group.name);
  const tip = (g) => [`${g.kept} of ${g.units} units stay in`, ...g.layers.slice(0, 6),
    ...(g.layers.length > 6 ? [`and ${g.layers.length - 6} more`] : [])].join("\n");
  const left = Math.min(260, 24 + 7 * d3.max(names, (name) => clip(name, 34).length));
  return el("div", groups.length > 24 ? { class: "scroll" } : {}, chart({
    width: 1016, height: 44 + 22 * groups.length, marginLeft: left, marginRight: 90, marginTop: 28,
    x: { axis: "top", label: null, tickSize: 0, grid: true },
    y: { domain: names, label: null, tickSize: 0, tickFormat: (name) => clip(name, 34) },
    marks: [
      Plot.barX(groups, { x: "units", y: "name", fill: PALE, inset: 2 }),
      Plot.barX(groups, { x: "kept", y: "name", fill: ACCENT, inset: 2 }),
      Plot.text(groups, { x: "units", y: "name", text: (g) => `${g.kept} of ${g.units}`, textAnchor: "start", dx: 8, fill: SOFT }),
      Plot.tip(groups, Plot.pointerY({ x: "kept", y: "name", title: tip, ...BOX })),
    ],
  }));
}

/** Labels at heights that are far enough from each other, in their order. */
function spaced(labels, least = 15) {
  const sorted = d3.sort(labels, (label) => label.at);
  sorted.forEach((label, k) => { if (k) label.at = Math.max(label.at, sorted[k - 1].at + least); });
  return sorted;
}

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

function curves(all) {
  const cost = (curve, loss) => loss * (curve.factor ?? 1);
  const at = (curve, position) => {
    const low = Math.floor(position), high = Math.ceil(position), a = curve.losses[low], b = curve.losses[high];
    return a == null || b == null ? null : cost(curve, a + (b - a) * (position - low));
  };
  const points = all.flatMap((curve, i) => curve.losses.map((loss, k) => (
    { i, curve, share: k / (curve.losses.length - 1), cost: loss == null ? null : cost(curve, loss) }
  ))).filter((point) => point.cost > 0);
  const chosen = all.map((curve, i) => ({ i, curve, share: curve.share, cost: at(curve, curve.share * (curve.losses.length - 1)) }))
    .filter((point) => point.cost > 0);
  const [least, most] = d3.extent(points, (point) => Math.log10(point.cost));
  const [bottom, top] = [Math.floor(least), Math.max(Math.ceil(most), Math.floor(least) + 1)];
  const decades = d3.range(bottom, top + 1).map((power) => 10 ** power);
  const few = all.length <= 8, colour = (i) => (few ? d3.schemeTableau10[i] : SOFT), drawn = [...new Set(points.map((point) => point.i))];
  const HEIGHT = 420, ABOVE = 28, BELOW = 44, INSET = 12;
  const height = (cost) => INSET + ((top - Math.log10(cost)) / (top - bottom)) * (HEIGHT - ABOVE - BELOW - INSET);
  const labels = few ? spaced(drawn.map((i) => ({ i, at: height(points.findLast((point) => point.i === i).cost) }))) : [];
  const tip = (p) => [p.curve.group, `${hundredth(p.share)} of ${p.curve.units} units gone: error ${exact(p.cost)}`,
    `removed here: ${hundredth(p.curve.share)}`,
    p.curve.factor == null ? "factor not measured" : `factor ${exact(p.curve.factor)}`].join("\n");
  const made = chart({
    width: 1016, height: HEIGHT, marginLeft: 64, marginRight: few ? 190 : 16, marginTop: ABOVE, marginBottom: BELOW, insetTop: INSET,
    x: { label: "share of the units that goes", tickFormat: "%", tickSize: 0, domain: [0, 1] },
    y: { type: "log", label: "expected relative error of the outputs", domain: [10 ** bottom, 10 ** top] },
    marks: [
      Plot.gridY({ ticks: decades, strokeOpacity: 0.12 }),
      Plot.axisY({ ticks: decades, tickSize: 0, tickFormat: "~g" }),
      Plot.line(points, { x: "share", y: "cost", z: "i", stroke: (p) => colour(p.i), strokeOpacity: few ? 1 : Math.max(0.12, 12 / all.length / 2), strokeWidth: 1.3, className: "curve" }),
      Plot.dot(chosen, { x: "share", y: "cost", r: 4.5, fill: ACCENT, stroke: "var(--paper)" }),
      ...labels.map(({ i, at }) => Plot.text([clip(all[i].group, 26)], {
        text: (name) => name, frameAnchor: "top-right", textAnchor: "start", lineAnchor: "middle", dx: 8, dy: at, fill: colour(i),
      })),
      Plot.tip(points, Plot.pointer({ x: "share", y: "cost", title: tip, ...BOX })),
    ],
  }, key([PALE, "one curve for each set of units that go together"], [ACCENT, "what was chosen"]));
  const plot = made.querySelector("svg");
  plot.addEventListener("input", () => plot.querySelectorAll(".curve path").forEach((path, k) => {
    path.classList.toggle("on", plot.value?.i === drawn[k]);
  }));
  return made;
}

/** How a metric of this unit is written, as the terminal does. */
const written = (unit) => (unit === "share" ? d3.format(".2%") : (n) => `${exact(n)} ${unit}`.trim());
const LESS = (found) => (found.higher_is_better ? "" : ", less is better");

function front(points, names, cost, dense, write) {
  const chosen = d3.sort(points.filter((point) => names.includes(point.name)), (point) => point[cost]);
  const others = points.filter((point) => !names.includes(point.name));
  const title = (p) => [p.ratio ? `${p.criterion}, ratio ${exact(p.ratio)}` : "as it was", `${data.metric} ${write(p.metric)}`,
    `${amount(p[cost])} ${cost}`].join("\n");
  const ends = dense[cost] == null ? [] : [dense];
  const place = { x: cost, y: "metric" };
  return chart({
    width: 500, height: 350, marginLeft: 52, marginRight: 24, marginTop: 28, marginBottom: 44, insetTop: 12, inset: 6,
    x: { label: cost === "latency" ? "latency, seconds" : cost, tickFormat: amount, ticks: 5, tickSize: 0, nice: true },
    y: { label: data.metric, tickFormat: data.unit === "share" ? ".0%" : "~g", tickSize: 0, ticks: 6, grid: true, nice: true },
    color: { legend: true, domain: [...new Set(data.points.map((point) => point.criterion))] },
    marks: [
      Plot.line([...chosen, ...ends], { ...place, stroke: PALE, strokeWidth: 5, curve: "step-after" }),
      Plot.dot(others, { ...place, stroke: "criterion", r: 4, strokeWidth: 1.5 }),
      Plot.dot(chosen, { ...place, fill: "criterion", r: 5, stroke: "var(--paper)" }),
      Plot.dot(ends, { ...place, fill: "var(--ink)", r: 5 }),
      Plot.text(ends, { ...place, text: () => "as it was", dy: -13, textAnchor: "end", dx: 6, fill: "var(--ink)" }),
      Plot.text(chosen.length > 12 ? [] : chosen, { ...place, text: (p) => exact(p.ratio), dx: 7, dy: 11, textAnchor: "start", fill: SOFT, fontSize: 11 }),
      Plot.tip([...points, ...ends], Plot.pointer({ ...place, title, ...BOX })),
    ],
  });
}

/** Channels, or so many heads or groups of a convolution of so many channels each. */
function kind(group) {
  const units = group.rows ? `${group.rows} ${group.kind === "head" ? "heads" : "groups"} x ${group.prunable / group.rows}` : group.kind;
  return group.crosses_norm ? `${units}, crosses a norm` : units;
}

/** What had to hold, and what did not. */
function gated({ gates, failed }) {
  const asked = Object.entries(gates).filter(([name, value]) => name !== "gate" && value != null).map(([name, value]) => `--${name.replace("_", "-")} ${exact(value)}`);
  const sure = gates.gate === "interval" ? " at the worse ends of the intervals" : "";
  return failed.length ? `failed: ${failed.join("; ")}` : `${asked.join(", ")} held${sure}`;
}

function showReport() {
  const { before, after, proof, validation, reconstruction: story, groups, frozen } = data;
  const figures = [
    figure("parameters", share(after.parameters, before.parameters), `${whole(after.parameters)} of ${whole(before.parameters)}`, after.parameters / before.parameters),
    figure("MACs", share(after.macs, before.macs), `${amount(after.macs)} of ${amount(before.macs)}`, after.macs / before.macs),
    figure("file size", share(after.bytes, before.bytes), `${bytes(after.bytes)} of ${bytes(before.bytes)}`, after.bytes / before.bytes),
  ];
  if (validation) {
    const write = written(validation.unit);
    figures.push(figure(validation.metric, write(validation.after), `was ${write(validation.before)}, on ${whole(validation.samples)} samples${LESS(validation)}`));
  }
  const times = data.latency?.measured ?? data.latency?.predicted;
  if (times) {
    const [was, is] = [times.before, times.after].map((t) => t.median ?? t);
    const how = times.speedup ? `measured, ${whole(times.threads) === "0" ? "default" : whole(times.threads)} threads` : "predicted";
    figures.push(figure("latency", is > was ? `${(is / was).toFixed(2)} times slower` : `${(was / is).toFixed(2)} times faster`, `${brief(is)} of ${brief(was)} ms, ${how}`, is / was));
  }
  const errors = story?.output_error;
  page.append(el("div", { class: "figures" }, ...figures), facts([
    ...[...data.warnings, ...(validation?.warnings ?? [])].map((warning) => ["Warning", warning]),
    ["Gates", validation?.gates && gated(validation)],
    ["Proof", proven(proof)],
    ["Inputs used", story?.inputs ? `${story.inputs}${story.samples ? `, ${whole(story.samples)} samples` : ""}${story.diversity == null ? "" : `, diversity ${exact(story.diversity)}`}` : "none: weights alone decided"],
    ["Refitted", errors && !story.failed ? `${story.layers.length} layers; output error on held-out inputs ${exact(errors.refitted)} (as sliced ${exact(errors.sliced)}, by weights alone ${said(errors.fast)})${story.fell_back ? "; this was worse than weights alone, so theirs was taken" : ""}` : story?.failed ?? (story?.merged == null ? null : `${whole(story.merged)} removed units were merged into kept ones`)],
    ["Fine-tuned", !data.finetune ? null : data.finetune.skipped ?? `${whole(data.finetune.steps)} steps on ${data.finetune.inputs}; on held-out inputs loss ${exact(data.finetune.loss.after)} (before ${exact(data.finetune.loss.before)}), output error ${exact(data.finetune.output_error.after)} (${exact(data.finetune.output_error.before)})${data.finetune.accepted ? "" : "; this was no better, so the weights stay as they were"}`],
    ...data.notes.map((note) => ["Note", note]),
  ]));
  if (groups.length) section("Widths", "Every group is one width that all its layers share: what is left of it, and what it was.",
    widths(groups), key([ACCENT, "kept"], [PALE, "removed"]));
  if (data.curves.length) section("Sensitivity", "What removing a share of one set of units is expected to cost: the error of the layers that read it, times the measured part of it that reaches the outputs. Point at a curve for its group.",
    curves(data.curves));
  section("Groups", null, table(groups, [
    ["group", (g) => g.name], ["layers", (g) => g.layers.length, whole], ["units", (g) => g.units, whole],
    ["prunable", (g) => g.prunable, whole], ["kept", (g) => g.kept, whole], ["kept share", (g) => g.kept / g.units, hundredth],
    ["parameters", (g) => g.parameters, whole], ["MACs", (g) => g.macs, whole],
    ["kind", kind],
  ], "groups"));
  if (frozen.length) section("Frozen", "What stays, and why.", table(frozen, [
    ["reason", (f) => f.reason], ["operator", (f) => f.op_type], ["node", (f) => f.node], ["parameter", (f) => f.parameter],
    ["axis", (f) => f.axis, whole], ["units", (f) => f.units, whole],
  ], "axes"));
  if (story?.layers?.length) section("Refitted layers", "Relative error of each layer on held-out inputs, with sliced and with refitted weights.", table(story.layers, [
    ["layer", (l) => l.layer], ["error before", (l) => l.before, exact], ["error after", (l) => l.after, exact], ["ridge", (l) => l.ridge, exact],
  ], "layers"));
}

function showSweep() {
  const done = data.points.filter((point) => point.error == null), write = written(data.unit);
  const failed = data.points.length - done.length;
  const on = (point) => Object.keys(data.fronts).filter((cost) => data.fronts[cost].includes(point.name)).join(", ");
  page.append(el("div", { class: "figures" },
    figure("points", whole(done.length), failed ? `${whole(failed)} more failed` : "none failed"),
    figure(`${data.metric}, dense`, write(data.dense.metric), `${data.data}${LESS(data)}`),
    figure("parameters, dense", amount(data.dense.parameters), bytes(data.dense.bytes)),
    figure("MACs, dense", amount(data.dense.macs), "of one sample")), facts(data.warnings.map((warning) => ["Warning", warning])));
  section("Pareto fronts", "Filled: no other point is both cheaper and better. The numbers are ratios.",
    el("div", { class: "charts" }, ...Object.entries(data.fronts).map(([cost, names]) => front(done, names, cost, data.dense, write))));
  const kept = (cost) => (point) => (point.error == null ? point[cost] / data.dense[cost] : null);
  section("Points", null, table(data.points, [
    ["criterion", (p) => p.criterion], ["ratio", (p) => p.ratio, exact], ["parameters kept", kept("parameters"), hundredth],
    ["MACs kept", kept("macs"), hundredth], ["file size", (p) => p.bytes, bytes], [data.metric, (p) => p.metric, write],
    ...("latency" in data.fronts ? [["latency, s", (p) => p.latency, exact]] : []),
    ["seconds", (p) => p.seconds, d3.format(".1f")], ["on the front of", on], ...(failed ? [["error", (p) => p.error ?? ""]] : []),
  ], "points"));
}

const GRID = new Set(["ratio", "criterion"]);  // of each point, not of a sweep
document.title = `${data.title} - onnxprune`;
page.append(el("h1", {}, data.title), el("div", { class: "soft" }, data.kind === "sweep" ? "Pruned in many ways by onnxprune" : "Pruned by onnxprune"));
(data.kind === "sweep" ? showSweep : showReport)();
section("Environment", null, el("div", { class: "columns" },
  el("div", {}, el("h3", {}, "Versions"), facts(Object.entries(data.versions)),
    data.seconds && el("h3", { style: "margin-top: 20px" }, "Seconds"), data.seconds && facts(Object.entries(data.seconds).map(([k, v]) => [k, d3.format(".2f")(v)]))),
  el("div", {}, el("h3", {}, "Options"), facts(Object.entries(data.options).filter(([k]) => !(data.kind === "sweep" && GRID.has(k))).map(option)))));
page.append(el("footer", {}, `onnxprune ${data.versions.onnxprune}. Charts by Observable Plot and D3 (ISC licence).`));
