// Tables of class "sortable": a button in each head sorts by its column, numbers as numbers, dashes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.querySelector("tbody");
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)], empty = Number(x === "–" || x === "") - Number(y === "–" || y === "");
        const order = Number.isNaN(x - y) ? x.localeCompare(y) : x - y;
        return empty || (up ? order : -order);
      });
      body.append(...rows);
    });
  });
}
