// A click, or Enter, on a column's name sorts its table by that column; once more turns it round.
for (const table of document.querySelectorAll("main table")) {
  const heads = [...table.querySelectorAll("thead th")];
  const turn = (head) => {
    const column = heads.indexOf(head), down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].textContent.trim();
    const order = (a, b) => {
      const x = value(a), y = value(b), p = parseFloat(x), q = parseFloat(y);
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1); // empty cells last, whichever way
      const found = isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q;
      return down ? -found : found;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
  };
  for (const head of heads) {
    head.tabIndex = 0;
    head.addEventListener("click", () => turn(head));
    head.addEventListener("keydown", (event) => event.key === "Enter" && turn(head));
  }
}
