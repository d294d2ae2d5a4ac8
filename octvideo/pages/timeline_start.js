"use strict";
showTimeline(document.getElementById("timeline"), JSON.parse(document.getElementById("data").textContent));
