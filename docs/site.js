// What scrolls by itself, a wide table or a long command, is reached by the tab key, where the browser does not see to that itself.
const resized = new ResizeObserver((seen) => {
  for (const { target } of seen) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
document.querySelectorAll("pre, .table-wrapper").forEach((one) => resized.observe(one));
