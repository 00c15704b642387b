-- how the questions ended, per part
select label_run, dataset, part, status,
    count(*) as labels,
    round(100.0 * count(*) / sum(count(*)) over (partition by label_run, dataset, part), 2) as percent
from labels
group by label_run, dataset, part, status
order by label_run, dataset, part, labels desc
