"use strict";

// One page, no build: a form, filters, hits. Everything that comes from the catalog is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const state = { cursor: null, about: null, chosen: new Map(), similar: null, number: 0, image: null };

async function ask(path, options) {
  const response = await fetch(path, options);
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || `the server answered ${response.status}`);
  return body;
}

// Whether the model of the catalog embeds such a side ("image" or "text").
function has(modality) {
  return !state.about || state.about.vector_names.includes(modality);
}

function invitation() {
  if (!has("text")) return "Drop an image.";
  return has("image") ? "Type words, drop an image, or both." : "Type words.";
}

function say(words, error = false) {
  $("status").textContent = words;
  $("status").classList.toggle("error", error);
}

// What is asked

function quoted(value) {
  return `'${value.replace(/[\\']/g, "\\$&")}'`;
}

function named(name) {
  return "`" + name + "`";
}

function where() {
  const parts = [];
  for (const [name, chosen] of state.chosen) {
    if (chosen instanceof Set && chosen.size) parts.push(`${named(name)} in (${[...chosen].map(quoted).join(", ")})`);
    if (!(chosen instanceof Set)) {
      if (chosen.low !== "") parts.push(`${named(name)} >= ${Number(chosen.low)}`);
      if (chosen.high !== "") parts.push(`${named(name)} <= ${Number(chosen.high)}`);
    }
  }
  return parts.join(" and ");
}

function question() {
  const form = new FormData();
  const text = $("text").value.trim();
  if (text) form.set("text", text);
  if (state.image) form.set("image", state.image);
  if (text && state.image) {
    const share = Number($("blend").value) / 100;
    form.set("text_weight", String(1 - share));
    form.set("image_weight", String(share));
  }
  if (where()) form.set("where", where());
  form.set("limit", "24");
  if (state.cursor) form.set("cursor", state.cursor);
  return form;
}

async function search(more = false) {
  const number = ++state.number;  // an answer that comes after a newer question is dropped
  if (!more) state.cursor = null;
  const form = question();
  if (!form.has("text") && !form.has("image") && !state.similar) {
    $("hits").replaceChildren();
    $("more").hidden = true;
    return say(invitation());
  }
  say("Searching …");
  try {
    const found = state.similar ? await similar(form) : await ask("search", { method: "POST", body: form });
    if (number !== state.number) return;
    show(found, more);
  } catch (error) {
    if (number === state.number) say(error.message, true);
  }
}

function similar(form) {
  const query = new URLSearchParams();
  for (const name of ["where", "limit", "cursor"]) if (form.has(name)) query.set(name, form.get(name));
  return ask(`items/${encodeURIComponent(state.similar.id)}/similar?${query}`);
}

// What is shown

function show(found, more) {
  const hits = found.hits.map(card);
  if (more) $("hits").append(...hits);
  else $("hits").replaceChildren(...hits);
  state.cursor = found.cursor;
  $("more").hidden = !found.cursor;
  const count = $("hits").children.length;
  if (!count) say("Nothing found. Try other words, or fewer filters.");
  else say(`${count} product${count === 1 ? "" : "s"}${found.cursor ? " so far" : ""}` +
           (state.similar ? `, similar to ${state.similar.title}` : ""));
  if (more && hits[0]) hits[0].querySelector("button").focus();
}

function card(hit) {
  const node = $("hit").content.firstElementChild.cloneNode(true);
  const image = node.querySelector("img");
  image.src = `items/${encodeURIComponent(hit.id)}/image`;
  image.alt = hit.row.title;
  image.addEventListener("error", () => image.removeAttribute("src"), { once: true });
  const open = node.querySelector(".open");
  open.href = image.src;
  open.setAttribute("aria-label", `Image of ${hit.row.title}`);
  node.querySelector("h2").textContent = hit.row.title;
  node.querySelector(".facts").textContent = Object.values(hit.row.attributes).filter((v) => v !== null && v !== "").join(" · ");
  node.querySelector(".score").textContent = hit.score.toFixed(3);
  node.querySelector(".similar").addEventListener("click", () => {
    state.similar = { id: hit.id, title: hit.row.title };
    search();
    scrollTo({ top: 0 });
  });
  const reason = node.querySelector(".reason");
  reason.hidden = !$("text").value.trim() || state.similar || !has("image");
  reason.addEventListener("click", () => explain(hit, node.querySelector(".why")));
  return node;
}

async function explain(hit, place) {
  if (!place.hidden) { place.hidden = true; return; }
  try {
    const query = new URLSearchParams({ text: $("text").value.trim() });
    const found = await ask(`items/${encodeURIComponent(hit.id)}/explain?${query}`);
    const strongest = Math.max(...found.words.map((w) => Math.abs(w.weight)), 1e-9);
    const words = found.words.flatMap((word) => {
      const mark = document.createElement("mark");
      mark.textContent = word.word;
      const strength = Math.round(70 * Math.abs(word.weight) / strongest);
      mark.style.background = `rgb(${word.weight > 0 ? "220 40 40" : "40 70 220"} / ${strength}%)`;
      return [mark, " "];
    });
    place.replaceChildren(...words);
    if (found.image) {
      const image = document.createElement("img");
      image.alt = "Where the model looked";
      image.src = found.image;
      place.append(image);
    }
    place.hidden = false;
  } catch (error) {
    say(error.message, true);
  }
}

// Filters

function filters(about) {
  const groups = Object.entries(about.attributes).map(([name, attribute]) => {
    const group = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = name;
    group.append(legend, ...(attribute.type === "number" ? range(name, attribute) : values(name, attribute)));
    return group;
  });
  $("filters").replaceChildren(...groups);
}

function values(name, attribute) {
  return attribute.values.map(({ value, count }) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.addEventListener("change", () => {
      const chosen = state.chosen.get(name) || new Set();
      box.checked ? chosen.add(value) : chosen.delete(value);
      state.chosen.set(name, chosen);
      filtered();
    });
    const number = document.createElement("span");
    number.className = "count";
    number.textContent = (attribute.approximate ? "≥ " : "") + count.toLocaleString();
    label.append(box, value, number);
    return label;
  });
}

function range(name, attribute) {
  const chosen = { low: "", high: "" };
  return ["low", "high"].map((end) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "number";
    input.step = "any";
    input.placeholder = String(attribute[end]);
    input.addEventListener("change", () => {
      chosen[end] = input.value;
      state.chosen.set(name, chosen);
      filtered();
    });
    label.append(end === "low" ? "from" : "to", input);
    return label;
  });
}

function filtered() {
  const count = [...state.chosen.values()].reduce((n, c) => n + (c instanceof Set ? c.size : Number(c.low !== "" || c.high !== "")), 0);
  $("filters-count").textContent = count ? `(${count})` : "";
  $("clear").hidden = !count;
  search();
}

// Images

function take(file) {
  state.image = file && file.type.startsWith("image/") ? file : null;
  if (file && !state.image) say(`${file.name} is no image`, true);
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  $("preview").hidden = $("forget").hidden = !state.image;
  $("drop-words").hidden = Boolean(state.image);
  if (state.image) $("preview").src = URL.createObjectURL(state.image);
  else $("image").value = "";
  $("blend-label").hidden = !state.image;
  if (state.image || !file) { state.similar = null; search(); }
}

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length && has("image")) take(event.dataTransfer.files[0]);
  });
}

$("image").addEventListener("change", () => take($("image").files[0]));
$("forget").addEventListener("click", () => take(null));
$("blend").addEventListener("change", () => search());
$("more").addEventListener("click", () => search(true));
$("clear").addEventListener("click", () => { state.chosen.clear(); filters(state.about); filtered(); });
$("form").addEventListener("submit", (event) => { event.preventDefault(); state.similar = null; search(); });

(async () => {
  $("filters-fold").open = matchMedia("(min-width: 44rem)").matches;
  try {
    state.about = await ask("about");
    document.title = `${state.about.card || "Product"} search`;
    $("text").hidden = !has("text");
    $("drop").hidden = !has("image");
    filters(state.about);
    if (!state.number) say(`${state.about.rows.toLocaleString()} rows. ${invitation()}`);  // else hits are there already
  } catch (error) {
    say(error.message, true);
  }
})();
