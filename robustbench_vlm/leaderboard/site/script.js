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

  function filterable(form) {
    const scope = document.getElementById(form.dataset.filters);
    const rows = [...scope.querySelectorAll("tbody tr")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const groups = [...scope.querySelectorAll("details")];
    const tell = form.querySelector("output");
    const field = (name) => form.elements.namedItem(name);
    const apply = () => {
      const words = field("words").value.toLowerCase().split(/\s+/).filter(Boolean);
      const status = field("status")?.value;
      const quiet = field("quiet")?.checked;
      let left = 0;
      rows.forEach((row, number) => {
        const fits = words.every((word) => texts[number].includes(word))
          && (!status || row.dataset.status === status) && (!quiet || row.dataset.warnings === "0");
        row.hidden = !fits;
        left += fits;
      });
      for (const group of groups) {
        group.hidden = !group.querySelector("tbody tr:not([hidden])");
        if (words.length) group.open = !group.hidden;
      }
      tell.textContent = left === rows.length ? `${rows.length} rows` : `${left} of ${rows.length} rows`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("reset", () => setTimeout(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
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

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("button.scheme").forEach(schemeButton);
    document.querySelectorAll("table.sortable").forEach(sortable);
    document.querySelectorAll("form[data-filters]").forEach(filterable);
    document.querySelectorAll("[data-copy]").forEach(copyButton);
  });
})();
