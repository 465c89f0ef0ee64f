"use strict";
document.documentElement.classList.add("js");

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

/* ---- tables: a button in each head sorts by its column; numbers by value, dashes last ---- */
const sortKey = cell => {
  const text = cell.textContent.trim().replaceAll("\u2212", "-").replaceAll(",", "");
  if (text === "" || text === "\u2013") return null;
  if (/^(\u221e|infinite)/.test(text)) return Infinity;
  const found = /^[\u00d7<>+ ]*(-?\.?\d[\d.]*(?:e[-+]?\d+)?)(?![\w-]*[a-z])/i.exec(text);
  return found ? Number(found[1]) : text.toLowerCase();
};
const compareKeys = (a, b) =>
  a === null || b === null ? (a === null) - (b === null)
    : typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }))
      : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) continue;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = make("button", { type: "button", class: "sort", title: "sort by this column" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map(row => [sortKey(row.cells[column]), row]);
      keyed.sort(([a], [b]) => (a === null || b === null || !down ? compareKeys(a, b) : compareKeys(b, a)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

/* ---- alignment by edit distance, as freerun.metrics.text.alignment (rapidfuzz) and diagnostics.tokens.align_row ---- */
const align = (own, gold) => {
  let begin = 0, a = own.length, b = gold.length;
  while (begin < a && begin < b && own[begin] === gold[begin]) begin++;
  while (a > begin && b > begin && own[a - 1] === gold[b - 1]) a--, b--;
  const columns = [], width = a - begin, height = b - begin;
  const cost = Array.from({ length: height + 1 }, (_, r) => Int32Array.from({ length: width + 1 }, (_, c) => r || c));
  for (let r = 1; r <= height; r++) {
    cost[r][0] = r;
    for (let c = 1; c <= width; c++) {
      const match = cost[r - 1][c - 1] + (own[begin + c - 1] !== gold[begin + r - 1]);
      cost[r][c] = Math.min(match, cost[r - 1][c] + 1, cost[r][c - 1] + 1);
    }
  }
  let r = height, c = width;
  const edits = [];
  while (r && c) {
    if (cost[r][c] - cost[r][c - 1] === 1) edits.push([begin + --c, null]);
    else if (--r && cost[r][c] - cost[r][c - 1] === -1) edits.push([null, begin + r]);
    else edits.push([begin + --c, begin + r]);
  }
  while (c) edits.push([begin + --c, null]);
  while (r) edits.push([null, begin + --r]);
  for (let n = 0; n < begin; n++) columns.push([n, n]);
  columns.push(...edits.reverse());
  for (let n = a, m = b; n < own.length; n++, m++) columns.push([n, m]);
  return columns;
};
const byPosition = (own, gold) => Array.from({ length: Math.max(own.length, gold.length) }, (_, n) =>
  [n < own.length ? n : null, n < gold.length ? n : null]);
/* columns with: kind; and which is the first divergence, and where it rejoins (3 right in a row, or all that is left) */
const compared = (own, gold, columns, needed = 3) => {
  let seen = 0;
  const cells = columns.map(([o, g]) => {
    const at = g ?? seen;
    if (g !== null) seen = g + 1;
    const kind = o === null ? "lost" : g === null ? "extra" : own[o] === gold[g] ? "equal" : "other";
    return { kind, own: o === null ? "" : own[o], gold: g === null ? "" : gold[g], at };
  });
  const first = cells.findIndex(cell => cell.kind !== "equal");
  const result = { cells, first, rejoins: -1, errors: cells.filter(cell => cell.kind !== "equal").length };
  if (first < 0) return result;
  const rest = gold.length - (cells[first + 1]?.at ?? gold.length), run = Math.min(needed, rest);
  for (let n = first + 1, count = 0; n < cells.length && rest; n++) {
    count = cells[n].kind === "equal" ? count + 1 : 0;
    if (count === run) { result.rejoins = n - count + 1; break; }
  }
  return result;
};

/* ---- the browser of examples ---- */
const unpack = async text => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};
const PAGE = 50;

const browse = (root, data) => {
  const $ = name => root.querySelector(`[data-part="${name}"]`);
  const { unit, runs } = data, count = data.source.length;
  const parts = text => Array.isArray(text) ? text : unit === "characters" ? Array.from(text) : text ? text.split(" ") : [];
  const whole = sequence => parts(sequence).join(unit === "characters" ? "" : " ");
  const output = (run, item) => {
    const out = run.out[item];
    return typeof out === "number" ? data.gold[item][out] : out;
  };
  const length = data.gold.map(golds => parts(golds[0]).length);
  const shown = () => runs.filter(run => run.seed === null || String(run.seed) === $("seed").value);
  const errors = (run, item) => run.err ? run.err[item] : null;
  const stroke = number => `<svg class="swatch" aria-hidden="true" viewBox="0 0 26 8"><path class="stroke-${number % 6}" d="M1 4H25"/></svg>`;
  const heading = run => {
    const head = make("h4", { class: "arm" }, run.arm);
    head.insertAdjacentHTML("afterbegin", stroke(run.number));
    return head;
  };
  let list = [], at = 0;

  const measure = () => {
    const order = $("order").value, counted = shown().filter(run => run.err);
    if (order.startsWith("run:")) {
      const run = counted.find(each => each.arm === order.slice(4)) ?? counted[0];
      return item => errors(run, item);
    }
    return item => {
      const all = counted.map(run => errors(run, item));
      if (!all.length) return 0;
      return order === "spread" ? Math.max(...all) - Math.min(...all) : all.reduce((a, b) => a + b, 0) / all.length;
    };
  };
  const number = (name, other) => $(name).value === "" ? other : Number($(name).value);
  const filter = () => {
    const words = $("search").value.toLowerCase(), value = measure(), visible = shown();
    const bounds = [number("short", 0), number("long", Infinity), number("few", 0), number("many", Infinity)];
    const has = text => whole(text).toLowerCase().includes(words);
    list = [];
    for (let item = 0; item < count; item++) {
      const size = length[item], bad = value(item);
      if (size < bounds[0] || size > bounds[1] || bad < bounds[2] || bad > bounds[3]) continue;
      if (words && !(data.source[item].toLowerCase().includes(words) || data.gold[item].some(has)
        || visible.some(run => has(output(run, item))))) continue;
      list.push(item);
    }
    if ($("order").value !== "file") {
      const keys = new Map(list.map(item => [item, value(item)]));
      list.sort((a, b) => keys.get(b) - keys.get(a) || a - b);
    }
    at = 0;
    const heads = visible.filter(run => run.err).map(run => run.arm);
    $("heads").textContent = heads.length ? `item; errors of ${heads.join(" \u00b7 ")}` : "item";
    $("count").textContent = `${list.length.toLocaleString("en")} of ${count.toLocaleString("en")} items match`;
    draw();
  };
  const tell = run => item => errors(run, item) === null ? "" : String(Math.round(errors(run, item) * 100) / 100);
  const draw = () => {
    const begin = Math.floor(at / PAGE) * PAGE, box = $("list"), visible = shown();
    box.replaceChildren(...list.slice(begin, begin + PAGE).map((item, n) => {
      const counts = visible.filter(run => run.err).map(run => tell(run)(item)).join(" \u00b7 ");
      const name = make("span", { class: "name" }, data.source[item] || whole(data.gold[item][0]) || "(nothing)");
      return make("li", {
        role: "option", id: `${root.id}-${begin + n}`, "aria-selected": "false", "aria-setsize": list.length,
        "aria-posinset": begin + n + 1, "data-at": begin + n,
      }, name, make("small", {}, counts));
    }));
    $("page").textContent = list.length ? `${begin + 1} to ${Math.min(begin + PAGE, list.length)}` : "";
    $("earlier").disabled = begin === 0;
    $("later").disabled = begin + PAGE >= list.length;
    choose(at, false);
  };
  const choose = (next, scroll = true) => {
    if (!list.length) { $("list").removeAttribute("aria-activedescendant"); $("item").replaceChildren(); return; }
    next = Math.max(0, Math.min(list.length - 1, next));
    const turned = Math.floor(next / PAGE) !== Math.floor(at / PAGE);
    at = next;
    if (turned) { draw(); if (!scroll) return; }
    const box = $("list"), chosen = document.getElementById(`${root.id}-${at}`);
    box.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    chosen.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", chosen.id);
    if (scroll) box.scrollTop = Math.max(Math.min(box.scrollTop, chosen.offsetTop),
      chosen.offsetTop + chosen.offsetHeight - box.clientHeight);
    detail(list[at]);
  };
  const cells = result => {
    const joined = [];
    result.cells.forEach((cell, n) => {
      const last = joined.at(-1), mark = n === result.first ? "first" : n === result.rejoins ? "rejoins" : "";
      if (unit === "characters" && last && !mark && last.kind === cell.kind) { last.own += cell.own; last.gold += cell.gold; }
      else joined.push({ ...cell, mark });
    });
    return joined.map(({ kind, own, gold, mark }) => make("span", { class: `cell ${kind} ${mark}` },
      make("i", {}, gold || "\u00b7"), make("b", {}, own || "\u00b7"),
      ...(mark ? [make("small", {}, mark === "first" ? "\u25b2 first" : "\u21a9 rejoins")] : [])));
  };
  const best = (own, golds, how) => golds.map(gold => compared(own, gold, how(own, gold)))
    .reduce((a, b) => (b.errors < a.errors ? b : a));
  const fed = (run, item, head, entries) => {
    const gold = parts(data.gold[item][0]), own = new Set(run.own[item]);
    const wrong = errors(run, item);
    const words = `${own.size} of ${gold.length} entries in place of gold, ${wrong} of them another symbol`;
    const kind = n => !own.has(n) ? "" : entries[n] === gold[n] ? "own" : "own wrong";
    return make("div", { class: "run" }, head, make("p", { class: "note" }, words),
      make("p", { class: "hidden" }, `fed: ${whole(entries)}`),
      make("div", { class: "cells", "aria-hidden": "true" }, ...gold.map((each, n) => make("span",
        { class: `cell ${kind(n)}` }, make("i", {}, each || "\u00b7"), make("b", {}, entries[n] || "\u00b7")))));
  };
  const block = (run, item) => {
    const own = parts(output(run, item)), head = heading(run);
    if (run.mode === "plain") return make("div", { class: "run" }, head, make("p", { class: "text" }, whole(own) || "(nothing)"));
    if (run.mode === "fed") return fed(run, item, head, own);
    const how = run.mode === "position" || $("align").value === "position" ? byPosition : align;
    const result = best(own, data.gold[item].map(parts), how);
    const at = n => result.cells[n].at + 1;
    const words = result.first < 0 ? "equal to gold" : `${result.errors} error${result.errors > 1 ? "s" : ""}; `
      + `first at position ${at(result.first)} of gold; `
      + (result.rejoins < 0 ? "does not rejoin" : `rejoins at position ${at(result.rejoins)}`);
    return make("div", { class: "run" }, head, make("p", { class: "note" }, words),
      make("p", { class: "hidden" }, `output: ${whole(own) || "(nothing)"}`),
      make("div", { class: "cells", "aria-hidden": "true" }, ...cells(result)));
  };
  const detail = item => {
    const title = make("h3", {}, data.source[item] || `item ${item + 1}`);
    const facts = make("p", { class: "note" }, `item ${data.number[item].toLocaleString("en")}, gold of ${length[item]} ${unit}`);
    const rows = [["gold", data.gold[item].map(gold => whole(gold)).join(" / ")]];
    if (data.prompt?.[item]) rows.unshift([data.heading, data.prompt[item]]);
    const lines = rows.map(([name, text]) => make("p", { class: "text" }, make("small", {}, `${name} `), text || "(nothing)"));
    $("item").replaceChildren(title, facts, ...lines, make("div", { class: "runs" }, ...shown().map(run => block(run, item))));
  };

  const seeds = [...new Set(runs.map(run => run.seed).filter(seed => seed !== null))];
  $("seed").append(...seeds.map(seed => make("option", { value: String(seed) }, String(seed))));
  if (seeds.length < 2) $("seed").parentNode.hidden = true;
  const counted = [...new Set(runs.filter(run => run.err).map(run => run.arm))];
  const orders = counted.length ? [["mean", counted.length > 1 ? "worst first, mean" : "worst first"]] : [];
  if (counted.length > 1) orders.push(["spread", "largest difference first"], ...counted.map(arm => [`run:${arm}`, `worst first: ${arm}`]));
  $("order").append(...[...orders, ["file", "as in the file"]].map(([value, text]) => make("option", { value }, text)));
  if (!counted.length) for (const name of ["few", "align"]) $(name).closest("label").hidden = true;
  if (runs.every(run => run.mode === "fed")) $("align").closest("label").hidden = true;
  $("align").value = data.align;
  let waiting;
  for (const name of ["search", "short", "long", "few", "many"])
    $(name).addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  for (const name of ["seed", "order"]) $(name).addEventListener("change", filter);
  $("align").addEventListener("change", () => list.length && detail(list[at]));
  $("earlier").addEventListener("click", () => choose((Math.floor(at / PAGE) - 1) * PAGE));
  $("later").addEventListener("click", () => choose((Math.floor(at / PAGE) + 1) * PAGE));
  $("list").addEventListener("click", event => {
    const option = event.target.closest("[data-at]");
    if (option) choose(Number(option.dataset.at));
  });
  const moves = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  root.addEventListener("keydown", event => {
    const typing = /^(INPUT|SELECT)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey || typing) {
      if (event.key === "Escape" && typing) $("list").focus();
      return;
    }
    const scrolls = event.target !== $("list") && event.key.length > 1;
    if (event.key === "/") $("search").focus();
    else if (event.key in moves && !scrolls) choose(at + moves[event.key]);
    else return;
    event.preventDefault();
  });
  root.hidden = false;
  filter();
};

for (const root of document.querySelectorAll(".browser")) {
  const note = root.previousElementSibling;
  unpack(document.getElementById(`${root.id}-data`).textContent)
    .then(data => browse(root, data))
    .catch(error => note.append(` (The items cannot be shown in this browser: ${error.message}.)`));
}
