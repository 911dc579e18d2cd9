"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const plural = (shown, there, noun) => (shown === there ? `${there} ${noun}` : `${shown} of ${there} ${noun}`);

// --- tables: sort, filter, hide columns ---

/** Numbers in front of texts, and what was not measured at the end, in both directions. */
function compare(a, b, sign) {
  const [x, y] = [a, b].map((cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v)));
  const [s, t] = [a, b].map((cell) => cell.textContent.trim());
  const [empty, other] = [s === "–", t === "–"];
  if (empty || other) return empty - other;
  if (x !== null && y !== null) return sign * (x - y);
  if ((x === null) !== (y === null)) return x === null ? 1 : -1;
  return sign * s.localeCompare(t, undefined, { numeric: true });
}

for (const table of all(".table")) {
  const body = table.querySelector("tbody");
  const original = [...body.rows];
  const heads = all("th", table);

  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const turn = { none: "descending", descending: "ascending", ascending: "none" };
      if (!head.classList.contains("number")) Object.assign(turn, { none: "ascending", ascending: "descending", descending: "none" });
      const next = turn[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const sorted = next === "none" ? original : [...original].sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      body.append(...sorted);
    });
  });

  const search = table.querySelector("input[type=search]");
  search?.addEventListener("input", () => {
    const wanted = words(search.value);
    for (const row of original) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
    const shown = original.filter((row) => !row.hidden).length;
    table.querySelector("output").textContent = plural(shown, original.length, "rows");
  });

  for (const box of all("[data-column]", table)) {
    const show = () => {
      for (const row of [table.querySelector("thead tr"), ...original]) row.cells[box.dataset.column].hidden = !box.checked;
    };
    box.addEventListener("change", show);
    show(); // a browser keeps what was chosen when the page is loaded again
  }
}

// --- figures: a button for each line ---

for (const figure of all(".plot")) {
  for (const button of all(".legend button", figure)) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      for (const line of all(`g[data-s="${button.dataset.s}"]`, figure)) line.classList.toggle("off", !on);
    });
  }
}

// --- images: the label of the one that is pointed at ---

for (const block of all(".block")) {
  const told = block.querySelector("output.label");
  const hint = "Point at an image, tap it, or go through a set with the arrow keys.";
  told.textContent = hint;
  for (const sheet of all(".pixels", block)) {
    const [rows, columns] = [Number(sheet.dataset.rows), Number(sheet.dataset.columns)];
    const labels = JSON.parse(sheet.dataset.labels);
    const method = sheet.parentElement.querySelector("a").textContent;
    const mark = document.createElement("i");
    let at = 0;
    const tell = (place) => {
      at = place;
      mark.style.left = `${((place % columns) / columns) * 100}%`;
      mark.style.top = `${(Math.floor(place / columns) / rows) * 100}%`;
      all(".pixels i", block).forEach((other) => other !== mark && other.remove());
      sheet.append(mark);
      told.textContent = `${method}: ${labels[place]}`;
    };
    const point = (event) => {
      const area = sheet.getBoundingClientRect();
      const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
      const inside = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
      tell(inside(y, rows) * columns + inside(x, columns));
    };
    const quiet = () => {
      mark.remove();
      told.textContent = hint;
    };
    sheet.addEventListener("pointermove", point);
    sheet.addEventListener("pointerdown", point);
    sheet.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && document.activeElement !== sheet && quiet());
    sheet.addEventListener("focus", () => tell(at));
    sheet.addEventListener("blur", quiet);
    sheet.addEventListener("keydown", (event) => {
      const [row, column] = [Math.floor(at / columns), at % columns];
      const next = { ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column] }[event.key];
      if (!next) return;
      event.preventDefault();
      if (next[0] >= 0 && next[0] < rows && next[1] >= 0 && next[1] < columns) tell(next[0] * columns + next[1]);
    });
  }
}

// --- records: a link opens the one it leads to ---

function open(hash) {
  const entry = /^#r\d+$/.test(hash) && document.querySelector(hash);
  if (!entry) return;
  entry.hidden = false;
  entry.open = true;
  entry.scrollIntoView();
  entry.querySelector("summary").focus({ preventScroll: true });
}
addEventListener("hashchange", () => open(location.hash));
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#r"]');
  if (link && link.getAttribute("href") === location.hash) open(location.hash);
});
open(location.hash);

const find = document.getElementById("find");
find.addEventListener("input", () => {
  const entries = all(".entry");
  for (const entry of entries) {
    const text = entry.querySelector("summary").textContent.toLowerCase();
    entry.hidden = !words(find.value).every((word) => text.includes(word));
  }
  const shown = entries.filter((entry) => !entry.hidden).length;
  find.closest(".tools").querySelector("output").textContent = plural(shown, entries.length, "records");
});

addEventListener("beforeprint", () => all("details.notes").forEach((notes) => (notes.open = true)));
