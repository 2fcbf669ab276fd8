// What every page needs beside HTMX: polls rest while the tab is hidden, and a service that does not answer is told of.
"use strict";
(() => {
  const trouble = document.getElementById("trouble");
  const isPoll = (event) => event.detail.elt.matches("[hx-trigger^='every']");

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && isPoll(event)) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[hx-trigger^='every']")) htmx.trigger(element, "refresh");
  });

  const failed = (event) => {
    trouble.textContent = event.detail.xhr.status === 404
      ? "This was deleted meanwhile."
      : "The service does not answer. What you see may be old; it is asked again every few seconds.";
  };
  document.addEventListener("htmx:sendError", failed);
  document.addEventListener("htmx:responseError", failed);
  document.addEventListener("htmx:afterOnLoad", (event) => { if (event.detail.successful) trouble.textContent = ""; });
})();
