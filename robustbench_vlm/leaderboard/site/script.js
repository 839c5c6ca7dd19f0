"use strict";
(() => {
  const root = document.documentElement;
  const kept = {
    read() { try { return localStorage.getItem("scheme"); } catch { return null; } },
    write(scheme) { try { localStorage.setItem("scheme", scheme); } catch { /* storage is not allowed: the choice holds for this page only */ } },
  };
  const chosen = kept.read();
  if (chosen === "light" || chosen === "dark") root.dataset.scheme = chosen;

  const isDark = () => (root.dataset.scheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  function schemeButton(button) {
    const name = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours"); };
    button.addEventListener("click", () => {
      root.dataset.scheme = isDark() ? "light" : "dark";
      kept.write(root.dataset.scheme);
      name();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
    name();
    button.hidden = false;
  }

  function valueOf(row, column) {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  }

  function compare(a, b) {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }

  function sortBy(table, header) {
    const column = header.cellIndex;
    const before = header.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : header.dataset.sort === "descending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return descending ? compare(b, a) : compare(a, b);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    table.dispatchEvent(new Event("sorted", { bubbles: true }));
  }

  function sortable(table) {
    for (const header of table.tHead.rows[0].cells) {
      if (!("sort" in header.dataset)) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header));
      header.append(button);
    }
  }

  async function unpack(data) {
    const bytes = Uint8Array.from(atob(data.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    const holder = document.createElement("template");
    holder.innerHTML = await new Response(stream).text();
    document.getElementById(data.dataset.packed).querySelector("tbody").append(...holder.content.querySelectorAll("tr"));
    data.remove();
  }

  function pager(nav, apply) {
    const made = ["Previous", "Next"].map((name) => Object.assign(document.createElement("button"), { type: "button", textContent: name }));
    const [back, forth] = made;
    const place = document.createElement("span");
    let page = 0;
    back.addEventListener("click", () => { page -= 1; apply(); });
    forth.addEventListener("click", () => { page += 1; apply(); });
    nav.replaceChildren(back, place, forth);
    return {
      first() { page = 0; },
      range(count, size) {
        const start = page * size, end = Math.min(count, start + size);
        place.textContent = count ? `${start + 1}–${end} of ${count}` : "no rows";
        back.disabled = page === 0;
        forth.disabled = end >= count;
        return [start, end];
      },
    };
  }

  function filterable(form) {
    const scope = document.getElementById(form.dataset.filters);
    const texts = new Map([...scope.querySelectorAll("tbody tr")].map((row) => [row, row.textContent.toLowerCase()]));
    const groups = [...scope.querySelectorAll("details")];
    const tell = form.querySelector("output");
    const field = (name) => form.elements.namedItem(name);
    const size = Number(form.dataset.rows || 0);
    const apply = () => {
      const words = field("words").value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = [...form.querySelectorAll("select")].filter((each) => each.value);
      const quiet = field("quiet")?.checked;
      const fits = (row) => words.every((word) => texts.get(row).includes(word))
        && chosen.every((each) => row.dataset[each.name] === each.value) && (!quiet || row.dataset.warnings === "0");
      const left = [...scope.querySelectorAll("tbody tr")].filter((row) => fits(row) || !(row.hidden = true));
      const [start, end] = pages ? pages.range(left.length, size) : [0, left.length];
      left.forEach((row, number) => { row.hidden = number < start || number >= end; });
      for (const group of groups) {
        group.hidden = !group.querySelector("tbody tr:not([hidden])");
        if (words.length) group.open = !group.hidden;
      }
      tell.textContent = left.length === texts.size ? `${texts.size} rows` : `${left.length} of ${texts.size} rows`;
    };
    const pages = size && texts.size > size ? pager(document.getElementById("measured-pages"), apply) : null;
    const again = () => { pages?.first(); apply(); };
    form.addEventListener("input", again);
    form.addEventListener("reset", () => setTimeout(again));
    form.addEventListener("submit", (event) => event.preventDefault());
    scope.addEventListener("sorted", again);
    form.hidden = false;
    apply();
  }

  function copyButton(block) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${block.dataset.copy}`);
    button.addEventListener("click", async () => {
      const code = block.querySelector("pre");
      getSelection().selectAllChildren(code);
      try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; } catch { button.textContent = "Selected"; }
    });
    block.append(button);
  }

  document.addEventListener("DOMContentLoaded", async () => {
    document.querySelectorAll("button.scheme").forEach(schemeButton);
    /* A browser without DecompressionStream keeps the links to the pages. Each page is then sorted and filtered on its own. */
    try { await Promise.all([...document.querySelectorAll("[data-packed]")].map(unpack)); } catch { /* the links stay */ }
    document.querySelectorAll("table.sortable").forEach(sortable);
    document.querySelectorAll("form[data-filters]").forEach(filterable);
    document.querySelectorAll("[data-copy]").forEach(copyButton);
  });
})();
