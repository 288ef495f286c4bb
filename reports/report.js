"use strict";
// What a mark says, shown beside it while it is pointed at or focused; arrow keys go from mark to mark in a chart.
(() => {
  const tip = document.getElementById("tip");
  const show = (mark) => {
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect(), edge = 8;
    const left = Math.min(Math.max(at.left + at.width / 2 - own.width / 2, edge), innerWidth - own.width - edge);
    const above = at.top - own.height - edge;
    tip.style.left = `${Math.max(left, edge)}px`;
    tip.style.top = `${above < edge ? at.bottom + edge : above}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const title of document.querySelectorAll(".plot title")) title.remove(); // or the browser would show a second one
  for (const plot of document.querySelectorAll(".plot")) {
    const marks = [...plot.querySelectorAll(".mark")];
    plot.addEventListener("mouseover", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) show(mark); else hide();
    });
    plot.addEventListener("mouseleave", hide);
    plot.addEventListener("focusin", (event) => { if (event.target !== plot) show(event.target); });
    plot.addEventListener("focusout", hide);
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      const now = marks.indexOf(document.activeElement);
      let next = null;
      if (event.key in steps) next = now < 0 ? 0 : now + steps[event.key];
      if (event.key === "Home") next = 0;
      if (event.key === "End") next = marks.length - 1;
      if (event.key === "Escape") { plot.focus(); hide(); }
      if (next === null || !marks.length) return;
      event.preventDefault();
      marks[Math.min(Math.max(next, 0), marks.length - 1)].focus();
    });
  }
  addEventListener("scroll", hide, { passive: true });
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
})();
