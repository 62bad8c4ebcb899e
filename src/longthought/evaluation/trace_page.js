"use strict";
// Everything that a model wrote enters the page as textContent, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(data.rollouts.map((one) => [one.id, one]));
const form = document.getElementById("filters");
const list = document.getElementById("list");
const panel = document.getElementById("one");
const tip = document.getElementById("tip");
const COLOURS = ["probability", "ratio", "advantage", "entropy"];
const COLUMNS = [
  ["id", "id", (one) => one.step * 1e12 + one.group * 1e6 + one.sample, "number"],
  ["reward", "reward", (one) => one.reward, "number"],
  ["adv.", "advantage", (one) => one.advantage, "number"],
  ["tokens", "length", (one) => one.length, "number"],
  ["finish", "finish", (one) => one.finish, ""],
  ["verdict", "verdict", (one) => one.verdict, ""],
  ["first words", "", (one) => one.reasoning + one.answer, ""],
];
const view = { order: null, down: true, shown: [], chosen: null, colour: "probability", tokens: true, group: false, at: -1 };

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function number(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function share(value) {
  if (value === null || value === undefined) return "–";
  return value >= 0.001 ? `${(100 * value).toFixed(1)} %` : value.toExponential(1);
}

function tone(verdict) {
  return { right: "right", wrong: "wrong" }[verdict] || "ungraded";
}

// ">0.5", "<=1", "=0", "0..1", "none" → a test of a number; null for what is no condition
function condition(text) {
  const trimmed = text.trim();
  if (!trimmed) return () => true;
  if (trimmed === "none") return (value) => value === null;
  const sign = /^(>=|<=|!=|==|>|<|=)?\s*([^\s<>=!]+)$/.exec(trimmed);
  const range = /^(.+)\.\.(.+)$/.exec(trimmed);
  const known = (value) => value !== null && value !== undefined;
  if (range) {
    const [low, high] = [Number(range[1]), Number(range[2])];
    return Number.isFinite(low) && Number.isFinite(high) ? (value) => known(value) && value >= low && value <= high : null;
  }
  const bound = sign ? Number(sign[2]) : NaN;
  if (!Number.isFinite(bound)) return null;
  const tests = {
    ">": (value) => value > bound,
    ">=": (value) => value >= bound,
    "<": (value) => value < bound,
    "<=": (value) => value <= bound,
    "!=": (value) => value !== bound,
  };
  const test = tests[sign[1]] || ((value) => value === bound);
  return (value) => known(value) && test(value);
}

function trained(one) {
  return one.left_out === null ? "not recorded" : one.left_out || "yes";
}

function refresh() {
  const tests = [];
  for (const name of ["step", "reward", "advantage", "length"]) {
    const test = condition(form[name].value);
    form[name].setCustomValidity(test ? "" : "write for example >0.5, <=1, =0, 0..1 or none");
    if (test) tests.push((one) => test(one[name]));
  }
  const text = form.text.value.toLowerCase();
  const problem = form.problem.value.toLowerCase();
  if (text) tests.push((one) => (one.reasoning + "\n" + one.answer).toLowerCase().includes(text));
  if (problem) tests.push((one) => one.problem.toLowerCase().includes(problem));
  for (const [name, read] of CHOICES) {
    const wanted = form[name].value;
    if (wanted) tests.push((one) => read(one) === wanted);
  }
  view.shown = data.rollouts.filter((one) => tests.every((test) => test(one)));
  if (view.order) view.shown.sort(compare(view.order[2], view.down));
  drawList();
  if (!view.shown.includes(view.chosen)) choose(view.shown[0] || null);
}

// Missing values come last whichever way round.
function compare(read, down) {
  return (a, b) => {
    const [left, right] = [read(a), read(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    const order = left < right ? -1 : left > right ? 1 : 0;
    return down ? -order : order;
  };
}

function drawList() {
  const mean = (read) => {
    const known = view.shown.map(read).filter((value) => value !== null);
    return known.length ? number(known.reduce((sum, value) => sum + value, 0) / known.length) : "–";
  };
  const right = view.shown.filter((one) => one.verdict === "right").length;
  document.getElementById("counts").textContent =
    `${view.shown.length} of ${data.rollouts.length} on this page · mean reward ${mean((one) => one.reward)} · ` +
    `${right} right · ${mean((one) => one.length)} tokens`;
  list.querySelectorAll("th").forEach((head, place) => {
    const by = view.order === COLUMNS[place];
    head.setAttribute("aria-sort", by ? (view.down ? "descending" : "ascending") : "none");
    head.textContent = COLUMNS[place][0] + (by ? (view.down ? " ▾" : " ▴") : "");
  });
  list.querySelector("tbody").replaceChildren(...view.shown.map(row));
}

function row(one) {
  const words = make("bdi", { textContent: (one.reasoning + " " + one.answer).slice(0, 300) });
  const line = make(
    "tr",
    {},
    make("td", { className: "number", textContent: one.id }),
    make("td", { className: "number", textContent: number(one.reward) }),
    make("td", { className: "number", textContent: number(one.advantage) }),
    make("td", { className: "number", textContent: one.length.toLocaleString("en") }),
    make("td", { textContent: one.finish }),
    make("td", { className: tone(one.verdict), textContent: one.verdict }),
    make("td", {}, words),
  );
  line.dataset.id = one.id;
  line.setAttribute("aria-selected", String(one === view.chosen));
  return line;
}

function choose(one) {
  view.chosen = one;
  view.at = -1;
  for (const line of list.querySelectorAll("tbody tr")) {
    const here = one !== null && line.dataset.id === one.id;
    line.setAttribute("aria-selected", String(here));
    if (here) line.scrollIntoView({ block: "nearest" });
  }
  if (one && location.hash !== `#${one.id}`) history.replaceState(null, "", `#${one.id}`);
  drawPanel();
  panel.scrollTop = 0;
}

function drawPanel() {
  tip.hidden = true;
  const one = view.chosen;
  if (!one) {
    panel.replaceChildren(make("p", { className: "missing", textContent: "No rollout meets these conditions." }));
    return;
  }
  const parts = [...one.parts.map(([name, value]) => `${name} ${number(value)}`),
    ...one.shaping.map(([name, value]) => `${name} ${number(value)} (shaping)`)];
  const update = one.update === null ? "" : `in update ${one.update} of the step`;
  const weight = one.weight === null ? "" : `weight ${one.weight.toPrecision(4)} in its loss`;
  const training = one.left_out ? `left out: ${one.left_out}` :
    one.left_out === null ? "not recorded" : [update, weight].filter(Boolean).join(", ") || "trained on";
  const facts = make("dl", { className: "facts" });
  const fact = (name, text, kind = "") =>
    facts.append(make("dt", { textContent: name }), make("dd", { textContent: text, className: kind }));
  fact("problem", one.problem);
  fact("verdict", one.evidence ? `${one.verdict}: ${one.evidence}` : one.verdict, tone(one.verdict));
  fact("reward", `${number(one.reward)}${parts.length ? ` (${parts.join(", ")})` : ""}`);
  fact("advantage", number(one.advantage, 3));
  fact("reply", `${one.length.toLocaleString("en")} tokens · ended by ${one.finish} · weights after ${one.version} updates`);
  fact("training", training);
  panel.replaceChildren(make("h2", { textContent: `Rollout ${one.id}` }), facts, buttons());
  if (view.group) panel.append(...group(one));
  else if (view.tokens) panel.append(...tokens(one));
  else panel.append(...text(one));
}

function buttons() {
  const bar = make("div", { className: "buttons" });
  const add = (label, pressed, act) => {
    const button = make("button", { type: "button", textContent: label, onclick: act });
    button.setAttribute("aria-pressed", String(pressed));
    bar.append(button);
  };
  add("text", !view.tokens && !view.group, () => show(false, false));
  add("tokens", view.tokens && !view.group, () => show(true, false));
  add("group", view.group, () => show(view.tokens, true));
  if (view.tokens && !view.group) {
    bar.append(make("span", { className: "quiet", textContent: "colour:" }));
    for (const colour of COLOURS) add(colour, view.colour === colour, () => paint(colour));
  }
  return bar;
}

function show(asTokens, asGroup) {
  Object.assign(view, { tokens: asTokens, group: asGroup, at: -1 });
  drawPanel();
}

function paint(colour) {
  view.colour = colour;
  show(true, false);
}

function text(one) {
  const parts = [["Prompt", one.prompt], ["Reasoning", one.reasoning], ["Answer", one.answer]];
  const shown = parts.filter(([name, said]) => said.trim() || name === "Answer").flatMap(([name, said]) => [
    make("h3", { textContent: name }),
    make("pre", { textContent: said.trim() || "(none)" }),
  ]);
  if (one.cut) shown.push(missing(`${one.cut.toLocaleString("en")} more characters are not on this page.`));
  return shown;
}

function missing(said) {
  return make("p", { className: "missing", textContent: said });
}

function entry(column, place) {
  return Array.isArray(column) ? column[place] : column;
}

function tokens(one) {
  const columns = one.tokens;
  const box = make("div", { className: "tokens" });
  const peak = Math.max(1e-9, ...[columns.advantage].flat().map((value) => Math.abs(value || 0)).slice(0, 50000));
  const spans = columns.id.map((id, place) => {
    const word = data.words[columns.word[place]];
    const span = make("span", { textContent: word.replaceAll("␣", " ").trim() ? word.replace(/^␣|␣$/g, " ") : word });
    span.dataset.place = place;
    const [tint, much] = colourOf(columns, place, peak);
    if (much > 0.02) {
      span.style.setProperty("--tint", tint);
      span.style.setProperty("--much", `${Math.round(70 * Math.min(1, much))}%`);
    }
    const state = data.states[columns.state[place]];
    if (/^(clipped|capped)/.test(state)) span.className = "clipped";
    else if (one.left_out || state === "not trained on") span.className = "idle";
    return span;
  });
  spans.forEach((span) => {
    box.append(span);
    if (span.textContent.includes("⏎")) box.append("\n");
  });
  const shown = [legend(), make("h3", { textContent: "Prompt" }), make("pre", { textContent: one.prompt }),
    make("h3", { textContent: "Reply" }), box];
  if (columns.id.length < one.length) {
    shown.push(missing(`${(one.length - columns.id.length).toLocaleString("en")} more tokens are not on this page.`));
  }
  return shown;
}

function colourOf(columns, place, peak) {
  const read = (name) => entry(columns[name], place);
  if (view.colour === "probability") {
    const value = read("sampled");
    return ["var(--warm)", value === null ? 0 : Math.min(1, -Math.log2(Math.max(value, 1e-6)) / 7)];
  }
  if (view.colour === "entropy") return ["var(--warm)", Math.min(1, (read("entropy") || 0) / 3)];
  const value = view.colour === "ratio" ? Math.log(read("ratio") || 1) : read("advantage") || 0;
  return [value > 0 ? "var(--right)" : "var(--wrong)", Math.abs(value) / (view.colour === "ratio" ? Math.log(1.3) : peak)];
}

function legend() {
  const swatch = (tint, said) => {
    const box = make("i");
    box.style.background = `linear-gradient(to right, transparent, ${tint})`;
    return make("span", {}, box, said);
  };
  const plain = { probability: [swatch("var(--warm)", "unlikely when it was sampled")],
    entropy: [swatch("var(--warm)", "the learner was undecided")],
    ratio: [swatch("var(--right)", "likelier under the learner than when sampled"), swatch("var(--wrong)", "less likely")],
    advantage: [swatch("var(--right)", "A > 0: made likelier"), swatch("var(--wrong)", "A < 0: made less likely")] };
  const column = { probability: "sampled" }[view.colour] || view.colour;
  const known = [view.chosen.tokens[column]].flat().some((value) => value !== null && value !== undefined);
  const parts = known ? plain[view.colour] : [make("span", { textContent: `The ${view.colour} was not recorded.` })];
  return make("div", { className: "legend" }, ...parts, make("span", { textContent: data.rule }));
}

function describe(one, place) {
  const read = (name) => entry(one.tokens[name], place);
  const lines = [
    `${data.words[one.tokens.word[place]]}`,
    `token ${place} of ${one.length}, id ${one.tokens.id[place]}`,
    `sampled with  ${share(read("sampled"))}`,
    `learner       ${share(read("learned"))}`,
    `ratio         ${number(read("ratio"), 4)}`,
    `advantage     ${number(read("advantage"), 4)}`,
    `entropy       ${number(read("entropy"), 3)}`,
  ];
  const state = data.states[one.tokens.state[place]];
  return [...lines, ...(state ? [`in the update: ${state}`] : [])].join("\n");
}

function point(span) {
  panel.querySelector(".here")?.classList.remove("here");
  tip.hidden = !span;
  if (!span) return;
  span.classList.add("here");
  tip.textContent = describe(view.chosen, Number(span.dataset.place));
  const box = span.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  const below = box.bottom + 6;
  tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : Math.max(4, box.top - tip.offsetHeight - 6)}px`;
}

function group(one) {
  const members = data.groups[`${one.step}:${one.group}`] || [];
  const said = members.length ? `The ${members.length} replies to this problem in step ${one.step}` : "The group is not on this page";
  const replies = members.map((member) => {
    const id = `${one.step}:${one.group}:${member.sample}`;
    const name = byId.has(id) ? make("a", { href: `#${id}`, textContent: `sample ${member.sample}` }) :
      make("b", { textContent: `sample ${member.sample}` });
    const facts = ` reward ${number(member.reward)} · adv. ${number(member.advantage)} · ${member.length.toLocaleString("en")} tokens · ${member.finish}`;
    const more = member.cut ? `\n… ${member.cut.toLocaleString("en")} more characters` : "";
    return make("div", { className: member.sample === one.sample ? "chosen" : "" },
      name, " ", make("span", { className: tone(member.verdict), textContent: member.verdict }),
      make("div", { className: "quiet", textContent: facts }), make("pre", { textContent: member.text + more }));
  });
  return [make("h3", { textContent: said }), make("div", { className: "replies" }, ...replies)];
}

function move(by) {
  const place = view.shown.indexOf(view.chosen) + by;
  if (view.shown[place]) choose(view.shown[place]);
}

function step(by) {
  const spans = panel.querySelectorAll(".tokens span");
  if (!spans.length) return;
  view.at = Math.max(0, Math.min(spans.length - 1, view.at + by));
  spans[view.at].scrollIntoView({ block: "nearest" });
  point(spans[view.at]);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    point(null);
    event.target.blur();
    return;
  }
  if (typing) return;
  const acts = {
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    t: () => show(view.group || !view.tokens, false), g: () => show(view.tokens, !view.group),
    "/": () => form.text.focus(),
  };
  COLOURS.forEach((colour, place) => { acts[place + 1] = () => paint(colour); });
  if (!Object.hasOwn(acts, event.key)) return;
  event.preventDefault();
  acts[event.key]();
}

function goToHash() {
  const one = byId.get(decodeURIComponent(location.hash.slice(1)));
  if (!one || one === view.chosen) return;
  if (!view.shown.includes(one)) { form.reset(); view.chosen = one; refresh(); }
  choose(one);
}

const CHOICES = [["finish", (one) => one.finish], ["verdict", (one) => one.verdict], ["trained", trained]];
for (const [name, read] of CHOICES) {
  const known = [...new Set(data.rollouts.map(read))].sort();
  form[name].append(new Option("any", ""), ...known.map((value) => new Option(value, value)));
}
document.getElementById("about").append(...data.notes.map((note) => make("p", { textContent: note })));
list.querySelector("thead tr").append(...COLUMNS.map((column) => {
  const head = make("th", { scope: "col", className: column[3], tabIndex: 0 });
  const sort = () => {
    view.down = view.order === column ? !view.down : column[3] === "number";
    view.order = column;
    refresh();
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  return head;
}));
form.addEventListener("input", refresh);
form.addEventListener("reset", () => setTimeout(refresh));
form.addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("click", (event) => {
  const line = event.target.closest("tbody tr");
  if (line) choose(byId.get(line.dataset.id));
});
panel.addEventListener("mouseover", (event) => {
  const span = event.target.closest(".tokens span");
  if (span) { view.at = Number(span.dataset.place); point(span); } else point(null);
});
panel.addEventListener("mouseleave", () => point(null));
panel.addEventListener("scroll", () => { tip.hidden = true; });
document.addEventListener("keydown", press);
addEventListener("hashchange", goToHash);
view.chosen = byId.get(decodeURIComponent(location.hash.slice(1))) || null;
refresh();
choose(view.chosen);
