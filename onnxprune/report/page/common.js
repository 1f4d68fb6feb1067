"use strict";
// What all pages are made of: elements, tables, pictures that are drawn for the width there is. Text from the model is
// set as text, never parsed.

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

const whole = d3.format(","), exact = d3.format(".4~g"), brief = d3.format(".3~g"), hundredth = d3.format(".1%");
const clip = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);

/** Where a long name may break: behind its separators, but not inside a number; between the words of what is long even so. */
const JOINT = /(?<=[^\s./_:][./_:]+)(?=[^\s\d./_:])/, WORDS = /(?<=[a-z]{2})(?=[A-Z])/;

/** Text as nodes that break at the joints of a name where it does not fit a line. */
function jointed(text) {
  const parts = text.split(JOINT).flatMap((part) => (part.length > 20 ? part.split(WORDS) : [part]));
  return parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
}

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
  const shown = children.filter((child) => child != null);
  made.append(...(tag === "option" ? shown : shown.flatMap((child) => (typeof child === "string" ? jointed(child) : [child]))));
  return made;
}

/** Terms and what is said of each; those of which nothing is are left out. */
function facts(entries) {
  const shown = entries.filter(([, value]) => value != null);
  return el("dl", { class: "facts" }, ...shown.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
}

/** What depends on the width of the page: by element, how it is drawn and the width that it was drawn for. */
const fitted = new Map();

function fit() {
  for (const [box, made] of fitted) {
    const width = Math.floor(box.clientWidth);
    if (!box.isConnected) fitted.delete(box);
    else if (width && width !== made.width) {
      made.width = width;
      made.draw(width);
    }
  }
}
let asked = 0;
addEventListener("resize", () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(fit); });

/** A picture that `make(width)` draws, in pixels of the page: its letters stay as large as they are meant to be. */
function picture(make) {
  const box = el("figure");
  fitted.set(box, { draw: (width) => box.replaceChildren(make(width)) });
  return box;
}

/** A table that sorts by any column and keeps the rows that hold the text of its search field. Where its columns do not
    fit beside each other, every row is a list.
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
    const [title, , write] = columns[i];
    const text = cell == null ? "-" : write ? write(cell) : String(cell);
    return el("td", { "data-column": title, ...(write ? { class: "number" } : {}) }, el("span", {}, text));
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
  const drawn = el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body), box = el("div", { class: "scroll" }, drawn);
  fitted.set(box, { draw: () => {
    drawn.classList.remove("stacked");
    drawn.classList.toggle("stacked", drawn.scrollWidth > box.clientWidth);
  } });
  return el("div", {}, el("div", { class: "tools" }, count, search), box);
}
